"""From a merged folder, or a base and its adapter, to a torch model in float32, with nothing missing unnoticed."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError, listed
from contract.loaded_model import no_bars, settle_head
from contract.model_config import ropes
from contract.model_folder import VOCABULARIES, is_encoder_decoder, read_json, resolve_model
from runtimes.nf4 import BLOCK_SIZE, put_on_nf4
from runtimes.peft_keys import MERGEABLE_TYPES, parse_key

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A language model, float32, in evaluation mode, and the folders its words come from."""

    model: Any  # a transformers PreTrainedModel
    folder: Path  # tokenizer and template
    base_folder: Path  # what the folder does not say of itself (an adapter's stop ids, its context)


def load_merged(artifact: Artifact, *, base_weights: str | None) -> Loaded:
    """A Hugging Face folder; with base_weights "nf4" its linear layers are put through NF4, double quantized."""
    model = _load_base(artifact.folder)
    if base_weights == "nf4":
        put_on_nf4(model, model.get_output_embeddings(), double_quant=True)
    return Loaded(model.eval(), artifact.folder, artifact.folder)


def load_adapter(artifact: Artifact, *, base_weights: str | None, merge_dtype: str | None) -> Loaded:
    """A base with its adapter, unmerged; or merged in float32 and rounded through `merge_dtype`.

    Raises:
        AssayError: another base than the adapter's, keys that do not match, or a merge that is not finite.
    """
    folder = artifact.folder
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") not in MERGEABLE_TYPES:
        raise AssayError(
            "adapters of this type are not run here",
            where=str(folder / "adapter_config.json"),
            expected=f'"peft_type": {" or ".join(MERGEABLE_TYPES)}',
            got=str(config.get("peft_type")),
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise AssayError(
            "the adapter's weights are missing; they are read from safetensors only",
            where=str(folder / ADAPTER_WEIGHTS),
        )
    base_folder = _base_folder(artifact, config)
    words = folder if any((folder / name).is_file() for name in VOCABULARIES) else base_folder
    model = _load_base(base_folder)
    _resize(model, folder / ADAPTER_WEIGHTS)
    trained_on = artifact.details.get("trained_on", {})
    if (base_weights or trained_on.get("quant", "w16")) == "nf4":
        put_on_nf4(
            model,
            model.get_output_embeddings(),
            bool(trained_on.get("double_quant", True)),
            int(trained_on.get("block_size", BLOCK_SIZE)),
        )
    adapted = _put_on(model, folder)
    if merge_dtype is not None:
        return Loaded(_merged(adapted, folder, getattr(torch, merge_dtype)).eval(), words, base_folder)
    return Loaded(adapted.get_base_model().float().eval(), words, base_folder)


def runs_encoder_decoder(artifact: Artifact) -> bool:
    """Is the model, or the base of the adapter, of the encoder-decoder kind?"""
    if artifact.kind != "adapter":
        return is_encoder_decoder(artifact.folder)
    return is_encoder_decoder(_named_base(artifact, read_json(artifact.folder / "adapter_config.json")))


def _named_base(artifact: Artifact, config: dict[str, Any]) -> Path:
    parent = artifact.parent("base")
    reference = parent.path if parent else config.get("base_model_name_or_path")
    if not reference:
        raise AssayError(
            "the adapter does not name its base",
            where=str(artifact.folder / "adapter_config.json"),
            expected="base_model_name_or_path",
        )
    return resolve_model(reference, config.get("revision"), beside=artifact.folder)


def _base_folder(artifact: Artifact, config: dict[str, Any]) -> Path:
    parent = artifact.parent("base")
    base = _named_base(artifact, config)
    if parent is None:
        return base
    there = open_artifact(base, verify=True)  # what everything else is held against
    if not there.is_parent(parent, artifact.manifest):
        raise AssayError(
            "the base is not the one the adapter was trained on",
            where=str(base),
            expected=f"digest {parent.digest[:12]}",
            got=f"digest {there.digest[:12]}",
            hint="restore the base's files, or train again",
        )
    return base


def _load_base(folder: Path) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = read_json(folder / "config.json")
    both = bool(config.get("is_encoder_decoder"))
    ropes(config, str(folder / "config.json"))  # a contradiction is named before transformers settles it
    if config.get("quantization_config"):
        raise AssayError(
            "the folder says its weights are quantized; the reference runs on plain weights",
            where=str(folder / "config.json"),
            got="quantization_config",
            hint="use the 16-bit model, or remove a stale quantization_config",
        )
    try:
        with no_bars():
            model, info = (AutoModelForSeq2SeqLM if both else AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                # T5 has no other than its own, and what caps attention none that could
                attn_implementation=None if both or config.get("attn_logit_softcapping") else "sdpa",
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise AssayError(
            "the folder's files do not make a model",
            where=str(folder),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
        ) from None
    problems = [f"{name}: missing" for name in sorted(info["missing_keys"])]
    problems += [
        f"{name}: not part of the model"
        for name in sorted(info["unexpected_keys"])
        if not name.endswith("rotary_emb.inv_freq")
    ]  # old folders store this buffer
    problems += [f"{entry[0]}: of another shape" for entry in sorted(info["mismatched_keys"], key=str)]
    if problems:
        raise AssayError("the folder's tensors do not match its config", where=str(folder), got=listed(problems))
    settle_head(model, folder)
    return model


def _embedding_modules(model: Any) -> set[str]:
    """The names of the input and output embeddings, which PEFT saves whole where they were resized or trained."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if module in ends}


def _resize(model: Any, weights: Path) -> None:
    """As many rows as the adapter saved, where it brings embeddings of its own. Rows nobody trained are not made up."""
    from safetensors import safe_open

    modules = _embedding_modules(model)
    with safe_open(weights, "pt") as file:
        parsed = {key: parse_key(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        rows = {
            found.module: file.get_slice(key).get_shape()[0]
            for key, found in parsed.items()
            if found.part == "weight" and found.module in modules
        }
    own = model.get_input_embeddings().weight.shape[0]
    brought = set(rows.values())
    if not brought or brought == {own}:
        return
    tied = model.config.tie_word_embeddings
    if len(brought) > 1 or (not tied and set(rows) != modules):
        raise AssayError(
            "the adapter brings only one of the two resized embeddings",
            where=str(weights),
            expected=listed(sorted(modules)),
            got=listed(f"{name}: {count} rows" for name, count in sorted(rows.items())),
            hint="save the other one too (modules_to_save)",
        )
    model.resize_token_embeddings(max(brought), mean_resizing=False)


def _put_on(model: Any, folder: Path) -> Any:
    """Put the adapter on, and see that every key of its file found its place and every place its key."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    where = str(folder / ADAPTER_WEIGHTS)
    embeddings = _embedding_modules(model)
    try:
        with _as_peft_writes_it(folder) as written, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT warns of keys that do not match; below they are errors
            with safe_open(written / ADAPTER_WEIGHTS, "pt") as file:
                found = set(file.keys())
            adapted = PeftModel.from_pretrained(model, written, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise AssayError(
            "the adapter cannot be put on this base",
            where=str(folder),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
        ) from None
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    parsed = {key: parse_key(key) for key in found - wanted}
    kept = ["weight", "original"]  # of resized embeddings; a tied head's token rows are written beside the embeddings'
    kept += ["trainable_tokens_delta"] if model.config.tie_word_embeddings else []
    whole = {key for key, one in parsed.items() if one.module in embeddings and one.part in kept}
    problems = [f"{key}: the model has no such place" for key in sorted(found - wanted - whole)]
    problems += [f"{key}: missing from the file" for key in sorted(wanted - found)]
    if problems:
        raise AssayError(
            "the adapter's keys do not match the model",
            where=where,
            got=listed(problems, 4),
            hint="is it the right base, and the adapter unchanged?",
        )
    return adapted


@contextmanager
def _as_peft_writes_it(folder: Path) -> Iterator[Path]:
    """The adapter's folder; where its keys are not as PEFT writes them, a temporary one in which they are."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        keys = set(file.keys())
        names = {key: parse_key(key).canonical for key in keys}
        if all(key == name for key, name in names.items()):
            yield folder
            return
        tensors = {name: file.get_tensor(key) for key, name in names.items()}
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(folder / "adapter_config.json", Path(scratch) / "adapter_config.json")
        save_file(tensors, Path(scratch) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        yield Path(scratch)


def _merged(adapted: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        model = adapted.float().merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AssayError("the adapter cannot be merged", where=str(folder), got=str(error)) from None
    overflown = []
    with torch.no_grad():
        for name, weight in model.state_dict().items():  # what is stored: BART's final_logits_bias is no parameter
            weight.copy_(weight.to(dtype).float())
            if not torch.isfinite(weight).all():
                overflown.append(name)
    if overflown:
        raise AssayError(f"merged weights do not fit into {dtype}", where=str(folder), got=listed(overflown))
    return model
