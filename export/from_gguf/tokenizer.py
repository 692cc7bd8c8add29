"""Writes a tokenizer's files from a GGUF: tokenizer.json, tokenizer_config.json, the template, the stop ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.errors import AssayError
from export.from_gguf.bpe import byte_level_json
from export.from_gguf.spm import sentencepiece_json
from export.from_gguf.tokens import Tokens
from export.from_gguf.unigram import unigram_json

_KINDS = {"gpt2": byte_level_json, "llama": sentencepiece_json, "t5": unigram_json}


def write_tokenizer(folder: Path, tokens: Tokens, *, context: int, where: str) -> None:
    """Write the four files.

    Args:
        folder: where to.
        tokens: of the GGUF.
        context: the model's, in tokens.
        where: the GGUF, for messages.

    Raises:
        AssayError: a kind of tokenizer that is not read.
    """
    make = _KINDS.get(tokens.model)
    if make is None:
        raise AssayError(
            "a tokenizer of this kind is not read",
            where=f"{where}: tokenizer.ggml.model",
            expected="gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 (SentencePiece Unigram)",
            got=tokens.model,
        )
    write_json(folder / "tokenizer.json", make(tokens, where))
    named = {"bos": tokens.bos, "eos": tokens.eos, "unk": tokens.unknown, "pad": tokens.pad}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": context,
            **{f"{name}_token": tokens.text(token) for name, token in named.items() if token is not None},
        },
    )
    if tokens.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokens.chat_template, encoding="utf-8")
    write_json(folder / "generation_config.json", generation(tokens))


def ids_of(tokens: Tokens) -> dict[str, int]:
    """What config.json says of ids."""
    named = {"bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad}
    return {f"{name}_token_id": token for name, token in named.items() if token is not None}


def generation(tokens: Tokens) -> dict[str, Any]:
    """generation_config.json: every id that ends a generation."""
    found: dict[str, Any] = ids_of(tokens)
    if len(tokens.stops) > 1:
        found["eos_token_id"] = list(tokens.stops)
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As transformers writes such files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
