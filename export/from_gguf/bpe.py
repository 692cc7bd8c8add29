"""tokenizer.json of a byte-level BPE: its merges, and the way text is cut that llama.cpp has a name for."""

from __future__ import annotations

from typing import Any

from contract.errors import AssayError, did_you_mean
from export.from_gguf.tokens import Tokens, around, split_vocabulary
from export.gguf_pre_tokenizers import KNOWN, PreTokenizer

# Other names that llama.cpp (llama-vocab.cpp) has for the same way of cutting text.
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "phi-2": "gpt-2",
}


def byte_level_json(tokens: Tokens, where: str) -> dict[str, Any]:
    """The file's content.

    Raises:
        AssayError: there are no merges, or a way to cut text that is not known.
    """
    row = _row(tokens.pre, where)
    if tokens.merges is None:
        raise AssayError("the tokenizer has no merges", where=where, expected="tokenizer.ggml.merges")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens.added(),
        "normalizer": {"type": "NFC"} if tokens.composes else None,
        "pre_tokenizer": _cut(row),
        "post_processor": around(tokens),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.ignore_merges,
            "vocab": {tokens.texts[token]: token for token in split_vocabulary(tokens)},
            "merges": [merge.split(" ", 1) for merge in tokens.merges],
        },
    }


def _row(pre: str, where: str) -> PreTokenizer:
    name = _ALIASES.get(pre, pre)
    for row in KNOWN:
        if row.name == name:
            return row
    names = [*dict.fromkeys(row.name for row in KNOWN), *_ALIASES]
    raise AssayError(
        "the way this tokenizer cuts text is not known here",
        where=f"{where}: tokenizer.ggml.pre",
        expected=", ".join(names),
        got=pre,
        hint=did_you_mean(pre, names) or "take the model's own folder, which has its tokenizer.json",
    )


def _cut(row: PreTokenizer) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in row.splits
    ]
    steps += [{"type": "Digits", "individual_digits": True}] if row.digits else []
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": row.gpt2})
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
