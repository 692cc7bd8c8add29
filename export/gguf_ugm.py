"""Unigram tables for GGUF: T5's SentencePiece as its tokenizer.json has it, with the map that normalizes characters."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from contract.errors import AssayError
from export.gguf_tokenizer import UNKNOWN, TokenTables, added_token_notes, token_rows

_ADDED_SCORE = -1000.0  # what llama.cpp's own converter gives rows without a piece


@dataclass
class _Reading:
    """How text is rewritten before it is cut into pieces."""

    charsmap: bytes | None = None
    prefix: bool = False  # a space before the text
    merges: bool = False  # runs of spaces become one, none is left at the end


def unigram_tables(spec: dict[str, Any], rows: int, where: str) -> TokenTables:
    """The tables of a SentencePiece Unigram tokenizer.

    Raises:
        AssayError: text is rewritten in a way llama.cpp does not, or unknown characters become bytes.
    """
    model = spec["model"]
    if model.get("byte_fallback"):
        raise AssayError("llama.cpp has no byte fallback for Unigram tokenizers", where=where)
    vocab = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    texts, types = token_rows(spec, rows, vocab)
    scores = [_ADDED_SCORE] * rows
    for index, (_, score) in enumerate(model["vocab"]):
        scores[index] = score
    if model.get("unk_id") is None:
        raise AssayError("the tokenizer has no unknown token", where=where)
    types[model["unk_id"]] = UNKNOWN
    reading = _reading(spec, where)
    # llama.cpp puts a space before a text whenever it merges spaces; where there is to be none, Assay merges them
    ours = reading.merges and not reading.prefix
    return TokenTables(
        "t5",
        "default",
        texts,
        types,
        scores=scores,
        add_space_prefix=reading.prefix,
        charsmap=reading.charsmap,
        removes_extra_spaces=reading.merges and not ours,
        merges_spaces=ours,
        notes=added_token_notes(spec),
    )


def _reading(spec: dict[str, Any], where: str) -> _Reading:
    normalizer, pre = spec["normalizer"], spec["pre_tokenizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    steps = [*steps, *([] if pre is None else pre.get("pretokenizers", [pre]))]
    found = _Reading()
    for step in steps:
        match step:
            case {"type": "Precompiled"}:
                found.charsmap = base64.b64decode(step["precompiled_charsmap"])
            case {"type": "Strip", "strip_left": False, "strip_right": True}:
                pass  # goes with the merging of spaces
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁" | " "}:
                found.merges = True
            case {"type": "WhitespaceSplit"}:
                found.merges = True
            case {"type": "Metaspace", "replacement": "▁"}:
                found.prefix = step["prepend_scheme"] != "never"
            case _:
                raise AssayError(
                    "the tokenizer rewrites text in a way llama.cpp does not",
                    where=where,
                    got=str(step)[:200],
                    expected="SentencePiece's character map, and spaces written as ▁",
                )
    return found
