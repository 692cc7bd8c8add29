"""Writes small tokenizers by hand, so that they are the same everywhere; only T5's map of characters is a library's."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny import QWEN2_REGEX, TEMPLATE

SPECIAL = ("<|begin|>", "<|end|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS = ("the", "in", "er", "an", "on", "Mara", "asks", "room", "meet", "ing", "to", "is", "and", "nine", "moves")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'-"


def byte_level(folder: Path) -> int:
    """A byte-level BPE that cuts as Qwen2 does and puts <|begin|> in front; returns the number of its tokens."""
    alphabet = _byte_characters()
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        left = "Ġ"
        for character in word:
            if (left, character) not in merges:
                merges.append((left, character))
            left += character
    vocab = {text: index for index, text in enumerate([*SPECIAL, *alphabet, *(a + b for a, b in merges)])}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    _write(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [_added(text, index) for index, text in enumerate(SPECIAL)],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [begin, first],
                "pair": [begin, first, second],
                "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]}},
            },
            "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]},
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[1],
            "pad_token": SPECIAL[2],
            "chat_template": TEMPLATE,
        },
    )
    return len(vocab)


def sentencepiece_bpe(folder: Path) -> int:
    """A SentencePiece BPE with byte fallback, as Llama 2's; returns the number of its tokens."""
    words = [f"▁{word[: end + 1]}" for word in _WORDS for end in range(len(word))]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(rank), 1) for rank, piece in enumerate(dict.fromkeys([*words, "▁", *_CHARACTERS]))]
    (folder / "tokenizer.model").write_bytes(_proto(pieces, kind=2))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "chat_template": TEMPLATE,
        },
    )
    return len(pieces)


def sentencepiece_unigram(folder: Path) -> int:
    """A SentencePiece Unigram as T5's, as spiece.model and as tokenizer.json; returns the number of its tokens."""
    words = [f"▁{word}" for word in _WORDS]
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces += [(piece, -3.0 - 0.25 * rank, 1) for rank, piece in enumerate([*words, "▁", *_CHARACTERS])]
    (folder / "spiece.model").write_bytes(_proto(pieces, kind=1, charsmap=_charsmap()))
    characters = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(_charsmap()).decode()}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end, first, second = (
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
        *({"Sequence": {"id": name, "type_id": 0}} for name in "AB"),
    )
    _write(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [_added(text, index) for index, (text, *_) in enumerate(pieces[:3])],
            "normalizer": {"type": "Sequence", "normalizers": [characters, strip, spaces]},
            "pre_tokenizer": metaspace,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, end],
                "pair": [first, end, second, end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "decoder": metaspace,
            "model": {
                "type": "Unigram",
                "unk_id": 2,
                "vocab": [[text, score] for text, score, _ in pieces],
                "byte_fallback": False,
            },
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "extra_ids": 0,
            "model_max_length": 512,
        },
    )
    return len(pieces)


def _byte_characters() -> list[str]:
    """GPT-2's character for every byte, in the order of its vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


@cache
def _charsmap() -> bytes:
    """SentencePiece's own map of characters (nmt_nfkc), which T5 has; it comes with every model that is trained."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as schema

    trained, model = io.BytesIO(), schema.ModelProto()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"]), model_writer=trained, vocab_size=8, hard_vocab_limit=False, minloglevel=2
    )
    model.ParseFromString(trained.getvalue())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def _proto(pieces: list[tuple[str, float, int]], *, kind: int, charsmap: bytes = b"") -> bytes:
    """A SentencePiece model of (piece, score, type); kind 1 is Unigram, 2 is BPE."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    for text, score, piece_type in pieces:
        proto.pieces.add(piece=text, score=score, type=piece_type)
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = kind == 2
    ids = {text: index for index, (text, *_) in enumerate(pieces)}
    proto.trainer_spec.unk_id, proto.trainer_spec.eos_id = ids["<unk>"], ids["</s>"]
    proto.trainer_spec.bos_id, proto.trainer_spec.pad_id = ids.get("<s>", -1), ids.get("<pad>", -1)
    proto.normalizer_spec.name = "nmt_nfkc" if charsmap else "identity"
    proto.normalizer_spec.precompiled_charsmap = charsmap
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = kind == 1
    return bytes(proto.SerializeToString(deterministic=True))


def _added(text: str, token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": True}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
