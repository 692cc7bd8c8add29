"""Unigram vocabularies (T5's SentencePiece), in which a text that spells a special token would find it as a piece."""

from __future__ import annotations

import json
from typing import Any

_STAND_IN = "\uf8f0{}\uf8f1"  # private-use characters, which no text may hold


def harmless(tokenizer: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` with the same ids, for text in which nothing is a special token.

    SentencePiece never takes a control piece for text; the `tokenizers` package does, because special tokens stand
    among the pieces. In the copy they have names that no text spells. Any but Unigram tokenizers come back as they are.
    """
    values = json.loads(tokenizer.to_str())
    if values["model"].get("type") != "Unigram":
        return tokenizer
    special = {token["content"] for token in values["added_tokens"] if token["special"]}
    names = {content: _STAND_IN.format(index) for index, content in enumerate(sorted(special))}
    values["model"]["vocab"] = [[names.get(piece, piece), score] for piece, score in values["model"]["vocab"]]
    for token in values["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    copy = type(tokenizer).from_str(json.dumps(values))
    copy.encode_special_tokens = True
    return copy
