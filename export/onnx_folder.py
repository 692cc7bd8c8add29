"""Refuses a folder that does not make the model its files say, before it is traced: tensors, settings, tokenizer."""

from __future__ import annotations

from pathlib import Path

from contract.errors import AssayError, listed
from contract.model_folder import is_encoder_decoder, read_json
from export.clean_seq2seq import checked, moved
from export.onnx_source import SourceTensors
from export.skeleton import skeleton_of


def check_folder(folder: Path, source: SourceTensors) -> None:
    """Hold a model folder against its own config.json, and read what runtimes will read of it.

    transformers makes up what is missing and leaves out what it does not know, which no comparison with it would show.

    Args:
        folder: a model folder.
        source: its tensors.

    Raises:
        AssayError: a tensor is missing, unknown, of another shape or not finite (all are named), a setting of an
            encoder-decoder makes no sense, or the tokenizer cannot be loaded.
    """
    skeleton = skeleton_of(folder)
    places = skeleton.names_of(source.names, str(folder))
    wrong = [
        f"{name}: {list(source.shape(name))}, must be {list(skeleton.shapes[place])}"
        for name, place in places.items()
        if source.shape(name) != skeleton.shapes[place]
    ]
    if wrong:
        raise AssayError(
            "the model's tensors have other shapes than its config.json says", where=str(folder), got=listed(wrong, 20)
        )
    if source.not_finite:
        raise AssayError("weights are not finite", where=str(folder), got=listed(source.not_finite, 20))
    if is_encoder_decoder(folder):
        _check_settings(folder, skeleton.shapes[skeleton.embedding][0])
    _check_tokenizer(folder)


def _check_settings(folder: Path, rows: int) -> None:
    from runtimes.logits_rules import read_target_format

    _, settings = moved(read_json(folder / "config.json"))
    settings |= read_json(folder / "generation_config.json")
    settings["decoder_start_token_id"] = read_target_format(folder, 1).start_id
    checked({key: value for key, value in settings.items() if value is not None}, rows, str(folder))


def _check_tokenizer(folder: Path) -> None:
    """Load the tokenizer as runtimes do; one that has yet to become a tokenizer.json, as that will be done."""
    from export.gguf_tokenizer import load_tokenizer
    from runtimes.hf_vocab import HfVocab

    if (folder / "tokenizer.json").is_file():
        HfVocab(folder)
    else:
        load_tokenizer(folder)
