"""tokenizer.json of T5's SentencePiece Unigram: pieces with their scores, and the map that normalizes characters."""

from __future__ import annotations

import base64
from typing import Any

from contract.errors import AssayError
from export.from_gguf.tokens import Tokens, around
from export.gguf_tokenizer import UNKNOWN

_SPACE = "▁"


def unigram_json(tokens: Tokens, where: str) -> dict[str, Any]:
    """The file's content.

    Raises:
        AssayError: the file has no scores, or no unknown token.
    """
    unknown = next((token for token, kind in enumerate(tokens.types) if kind == UNKNOWN), tokens.unknown)
    if tokens.scores is None or unknown is None:
        raise AssayError(
            "the tokenizer lacks what a Unigram tokenizer needs",
            where=where,
            expected="tokenizer.ggml.scores and an unknown token",
        )
    scores = tokens.scores
    added = tokens.added()
    size = len(tokens.texts)
    while tokens.is_filler(size - 1):
        size -= 1
    outside = {token["id"] for token in added}
    while size - 1 in outside and size - 1 != unknown:
        size -= 1
    prefix = tokens.add_space_prefix is not False
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(tokens, prefix),
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "always" if prefix else "never",
            "split": True,
        },
        "post_processor": around(tokens),
        "decoder": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "always" if prefix else "never",
            "split": True,
        },
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[tokens.texts[token], scores[token]] for token in range(size)],
            "byte_fallback": False,
        },
    }


def _normalizer(tokens: Tokens, prefix: bool) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if tokens.charsmap is not None:
        charsmap = base64.b64encode(tokens.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if tokens.removes_extra_spaces or tokens.merges_spaces:
        steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": _SPACE})
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}
