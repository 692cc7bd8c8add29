"""tokenizer.json of a SentencePiece BPE: merges in the order of their pieces' scores, spaces written as ▁."""

from __future__ import annotations

from typing import Any

from contract.errors import AssayError
from export.from_gguf.tokens import Tokens, around, split_vocabulary
from export.gguf_tokenizer import BYTE, NORMAL, USER_DEFINED

_SPACE = "▁"


def sentencepiece_json(tokens: Tokens, where: str) -> dict[str, Any]:
    """The file's content.

    Raises:
        AssayError: the file has no scores, or not a token for each of the 256 bytes.
    """
    if tokens.scores is None:
        raise AssayError("the tokenizer has no scores", where=where, expected="tokenizer.ggml.scores")
    bytes_there = sum(kind == BYTE for kind in tokens.types)
    if bytes_there != 256:
        raise AssayError(
            "the tokenizer has not a token for each byte, and llama.cpp's SentencePiece needs them",
            where=where,
            got=str(bytes_there),
        )
    prefix = tokens.add_space_prefix is not False  # llama.cpp's own default
    unknown = tokens.text(tokens.unknown)
    inside = split_vocabulary(tokens)
    texts = {token: _spelled(tokens, token) for token in inside}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token for token in tokens.added() if not _is_merged(tokens, token["id"])],
        "normalizer": None if tokens.spares_leading_space else _written(prefix),
        "pre_tokenizer": _metaspace() if tokens.spares_leading_space else None,
        "post_processor": around(tokens),
        "decoder": _decoder(prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: token for token, text in texts.items()},
            "merges": _merges(tokens, texts),
        },
    }


def _is_merged(tokens: Tokens, token: int) -> bool:
    """Is a token of users nothing but spaces? Merging reaches it; as an added token it would be written out as ▁."""
    text = tokens.texts[token]
    return tokens.types[token] == USER_DEFINED and bool(text) and not text.strip(" " + _SPACE)


def _spelled(tokens: Tokens, token: int) -> str:
    """Its text in the vocabulary. Converters write the spaces of users' tokens as spaces."""
    text = tokens.texts[token]
    return text.replace(" ", _SPACE) if _is_merged(tokens, token) else text


def _merges(tokens: Tokens, texts: dict[int, str]) -> list[list[str]]:
    """Every way to make a piece of two, best score first: llama.cpp joins the neighbours whose piece scores best."""
    assert tokens.scores is not None
    scores = tokens.scores
    ids = {text: token for token, text in texts.items()}
    pieces = [token for token in texts if tokens.types[token] == NORMAL or _is_merged(tokens, token)]
    pieces.sort(key=lambda token: (-scores[token], token))
    merges = []
    for token in pieces:
        text = texts[token]
        pairs = [
            (ids[text[:at]], ids[text[at:]]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids
        ]
        merges += [[texts[left], texts[right]] for left, right in sorted(pairs)]
    return merges


def _written(prefix: bool) -> dict[str, Any]:
    """▁ for every space, and one before the text."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not prefix:
        return spaces
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces]}


def _metaspace() -> dict[str, Any]:
    """The same, but no ▁ before a text that begins with a space."""
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
