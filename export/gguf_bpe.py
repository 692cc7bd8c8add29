"""Byte-level BPE tables for GGUF: tokens, types and merges, and the name of the way text is cut."""

from __future__ import annotations

from typing import Any

from contract.errors import AssayError
from export.gguf_pre_tokenizers import named, recognise
from export.gguf_tokenizer import TokenTables, added_token_notes, token_rows


def byte_level_tables(spec: dict[str, Any], rows: int, where: str, pre_tokenizer: str | None = None) -> TokenTables:
    """The tables of a byte-level BPE tokenizer.

    Args:
        spec: tokenizer.json.
        rows: embedding rows; tokens are padded to that many.
        where: named in messages.
        pre_tokenizer: llama.cpp's name for the way text is cut; None: recognised.

    Raises:
        AssayError: a pre-tokenizer or normalizer llama.cpp does not have.
    """
    model = spec["model"]
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"):
        if model.get(option):
            raise AssayError("llama.cpp's BPE has no such option", where=where, got=f"{option} = {model[option]!r}")
    pre = recognise(spec, where) if pre_tokenizer is None else named(pre_tokenizer)
    texts, types = token_rows(spec, rows, model["vocab"])
    merges = [
        pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair) for pair in model["merges"]
    ]
    return TokenTables(
        "gpt2",
        pre.name,
        texts,
        types,
        merges=merges,
        normalizes_nfc=_composes(spec, where),
        differs=pre.differs,
        differs_where=pre.differs_where,
        notes=added_token_notes(spec),
    )


def _composes(spec: dict[str, Any], where: str) -> bool:
    """Is text composed (NFC) before it is cut? Anything else that rewrites text is refused."""
    normalizer = spec["normalizer"]
    if normalizer is None:
        return False
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    kinds = [step["type"] for step in steps]
    if kinds not in ([], ["NFC"]):
        raise AssayError("the tokenizer rewrites text in a way llama.cpp does not", where=where, got=", ".join(kinds))
    return bool(kinds)
