"""What a loaded GGUF says of its own tokenizer, chat template and stop ids, and its text going to ids and back."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api

from contract.artifact_prompt import (
    GGUF_COMPOSES_KEY,
    GGUF_MERGES_SPACES_KEY,
    GGUF_SPARED_SPACE_KEY,
    merged_spaces,
)
from contract.errors import AssayError
from contract.prompt import PLAIN_TEMPLATE, ChatFormat

# llama.cpp adds ids to these by the look of their texts; what the file itself declares is only here
_STOP_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_BOS_KEY = "tokenizer.ggml.bos_token_id"
_UNKNOWN_KEY, _PADDING_KEY = "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"
_ATTR_UNKNOWN, _ATTR_CONTROL = 1, 8  # enum llama_token_attr


class GgufVocab:
    """The vocabulary of a loaded model. `model` is a llama_model pointer; it must outlive this."""

    def __init__(self, model: Any, path: Path) -> None:
        self._model, self._path = model, path
        self._vocab = api.llama_model_get_vocab(model)
        if api.llama_vocab_type(self._vocab) == api.LLAMA_VOCAB_TYPE_NONE:
            raise AssayError("the GGUF has no tokenizer", where=str(path), expected="tokenizer.ggml.model")
        self.size: int = api.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._composes = self.metadata(GGUF_COMPOSES_KEY) == "true"
        self._spares_space = self.metadata(GGUF_SPARED_SPACE_KEY) == "true"
        self._merges_spaces = self.metadata(GGUF_MERGES_SPACES_KEY) == "true"
        self.bos_id = self._bos_id()
        declared = [self._declared(key) for key in _STOP_KEYS]
        self.stop_ids = frozenset(i for i in declared if i is not None)
        # what llama.cpp's hosts stop at: the declared ids and those it knows by name
        self.end_ids = self.stop_ids | {i for i in range(self.size) if api.llama_vocab_is_eog(self._vocab, i)}
        self.chat = self._chat_format(declared[0])

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None where the file has no such key (or it is an array)."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length: int = api.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", errors="replace")
            size = length + 1

    def tokenize(self, text: str, control: bool) -> list[int]:
        """Ids without BOS or EOS; `control`: the text is one special token."""
        ids = self._tokenize(text, add_special=False, parse_special=control)
        if control and len(ids) != 1:
            raise AssayError(
                "the template writes a special token the GGUF does not have",
                where=str(self._path),
                got=f"{text!r} is {len(ids)} tokens",
            )
        return ids

    def tokenize_raw(self, text: str) -> list[int]:
        """Ids as llama.cpp makes them by default: BOS and EOS as the file asks, special tokens parsed."""
        return self._tokenize(text, add_special=True, parse_special=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out; incomplete characters become U+FFFD."""
        return b"".join(map(self._piece, ids)).decode("utf-8", errors="replace")

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if self._composes:
            text = unicodedata.normalize("NFC", text)
        if self._merges_spaces:
            text = merged_spaces(text)
        if self._spares_space and len(text) > 1 and text[0] in " ▁":
            text = text[1:]  # llama.cpp puts it there again
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise AssayError(
                "the text holds half of a surrogate pair, which is no character",
                got=f"{text[error.start]!r} at character {error.start}",
            ) from None
        room = len(data) + 16
        while True:
            buffer = (api.llama_token * room)()
            count: int = api.llama_tokenize(self._vocab, data, len(data), buffer, room, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                length = api.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
                if length >= 0:
                    break
                size = -length
            self._pieces[token] = buffer.raw[:length]
        return self._pieces[token]

    def _declared(self, key: str) -> int | None:
        value = self.metadata(key)
        return int(value) if value is not None and value.isdigit() and int(value) < self.size else None

    def _bos_id(self) -> int | None:
        declared = self._declared(_BOS_KEY)
        if declared is None and api.llama_vocab_type(self._vocab) == api.LLAMA_VOCAB_TYPE_SPM:
            found: int = api.llama_vocab_bos(self._vocab)  # the format's own default
            return found if found >= 0 else None
        return declared

    def _text(self, token: int | None) -> str | None:
        text: bytes | None = None if token is None else api.llama_vocab_get_text(self._vocab, token)
        return None if text is None else text.decode("utf-8", errors="replace")

    def _chat_format(self, eos_id: int | None) -> ChatFormat:
        special = {
            self._text(i)
            for i in range(self.size)
            if api.llama_vocab_get_attr(self._vocab, i) & (_ATTR_CONTROL | _ATTR_UNKNOWN)
        }
        template = self.metadata("tokenizer.chat_template")
        return ChatFormat(
            template or PLAIN_TEMPLATE,
            tuple(sorted(text for text in special if text)),
            self._text(self.bos_id),
            self._text(eos_id),
            bool(api.llama_vocab_get_add_bos(self._vocab)),
            plain=not template or template == PLAIN_TEMPLATE,
            unk_token=self._text(self._declared(_UNKNOWN_KEY)),
            pad_token=self._text(self._declared(_PADDING_KEY)),
        )
