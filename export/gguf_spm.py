"""SentencePiece tables for GGUF, from tokenizer.model or rebuilt from the merges of its tokenizer.json form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.errors import AssayError
from contract.gguf_leftovers import is_gguf
from export.gguf_tokenizer import BYTE, NORMAL, UNKNOWN, USER_DEFINED, TokenTables, added_token_notes, token_rows

_SPACE = "▁"
_ADDED_SCORE = -1000.0  # what llama.cpp's own converter gives added tokens
_UNMERGED_SCORE = -1e6


def sentencepiece_tables(folder: Path, spec: dict[str, Any], rows: int) -> TokenTables:
    """The tables of a SentencePiece BPE tokenizer.

    llama.cpp joins the neighbours whose joined piece has the highest score. tokenizer.model holds scores; without it
    the score is minus the rank of the first merge that makes the piece, which gives the same order.

    Raises:
        AssayError: text is rewritten in a way llama.cpp does not, or tokenizer.model disagrees with tokenizer.json.
    """
    vocab: dict[str, int] = spec["model"]["vocab"]
    texts, types = token_rows(spec, rows, vocab)
    for text, token_id in vocab.items():
        if types[token_id] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[token_id] = BYTE
        if types[token_id] == USER_DEFINED and _SPACE in text:
            types[token_id] = NORMAL  # reached by merging; as an added token it would be written out as ▁, not spaces
    unknown = spec["model"].get("unk_token")
    if unknown in vocab:
        types[vocab[unknown]] = UNKNOWN
    model_file = folder / "tokenizer.model"
    has_scores = model_file.is_file() and not is_gguf(model_file)  # transformers 4 saves a GGUF under this name
    scores = _model_scores(model_file, vocab) if has_scores else _merge_scores(spec)
    prefix, spares_spaces = _space_prefix(spec, str(folder))
    return TokenTables(
        "llama",
        "default",
        texts,
        types,
        scores=_by_row(scores, texts, vocab),
        add_space_prefix=prefix,
        spares_leading_space=spares_spaces,
        differs=_begins_with_space if spares_spaces else None,
        differs_where="text that begins with a space, before which llama.cpp puts another one" if spares_spaces else "",
        notes=added_token_notes(spec),
    )


def _by_row(scores: dict[str, float], texts: list[str], vocab: dict[str, int]) -> list[float]:
    rows = [_ADDED_SCORE] * len(texts)
    for text, token_id in vocab.items():
        rows[token_id] = scores.get(text, 0.0)
    return rows


def _model_scores(path: Path, vocab: dict[str, int]) -> dict[str, float]:
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        SentencePieceProcessor(model_file=str(path))
    except (DecodeError, RuntimeError, OSError, ValueError) as error:
        raise AssayError("tokenizer.model cannot be read", where=str(path), got=str(error).splitlines()[0]) from None
    if proto.trainer_spec.model_type != schema.TrainerSpec.BPE:
        raise AssayError(
            "tokenizer.model is not a BPE model",
            where=str(path),
            expected="BPE",
            got=schema.TrainerSpec.ModelType.Name(proto.trainer_spec.model_type),
        )
    pieces = {piece.piece: piece.score for piece in proto.pieces}
    differing = [piece.piece for index, piece in enumerate(proto.pieces) if vocab.get(piece.piece, index) != index]
    missing = [text for text in vocab if text not in pieces]
    if differing or len(missing) > len(vocab) // 2:
        raise AssayError(
            "tokenizer.model and tokenizer.json are of different tokenizers",
            where=str(path),
            got=f"{len(differing)} pieces have other ids, {len(missing)} are missing",
        )
    return pieces


def _merge_scores(spec: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for rank, pair in enumerate(spec["model"]["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        scores.setdefault(left + right, -float(rank))
    for text in spec["model"]["vocab"]:
        if len(text) > 1 and text not in scores:
            scores[text] = _UNMERGED_SCORE
    return scores


def _begins_with_space(text: str) -> bool:
    return text.startswith((" ", _SPACE))


def _space_prefix(spec: dict[str, Any], where: str) -> tuple[bool, bool]:
    """Is a space put before the text, and is that left out where one is there? What else rewrites text is refused."""
    normalizer, pre = spec["normalizer"], spec["pre_tokenizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prefix, spaces, spares, doubles = False, False, False, False
    for step in [*steps, *([] if pre is None else pre.get("pretokenizers", [pre]))]:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                spaces = True
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                spaces, prefix = True, step["prepend_scheme"] != "never"
                spares = prefix
            case {"type": "Split", "pattern": {"String": " "}} if spaces:
                pass  # Gemma's; no space is left by then
            case {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"} if spaces:
                doubles = True  # transformers 5's way to put a space before a text that begins with one, too
            case _:
                raise AssayError(
                    "the tokenizer rewrites text in a way llama.cpp's SentencePiece does not",
                    where=where,
                    got=str(step),
                    expected="Prepend ▁ and Replace spaces, or Metaspace without splitting",
                )
    if not spaces:
        raise AssayError(
            "a BPE with byte fallback that keeps spaces is not SentencePiece",
            where=where,
            expected=f"spaces replaced by {_SPACE}",
        )
    return prefix, spares and not doubles
