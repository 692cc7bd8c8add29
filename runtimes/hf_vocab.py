"""A Hugging Face folder's own tokenizer by the `tokenizers` package alone: ids as transformers makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.model_folder import read_json, token_text
from contract.unigram import harmless


class HfVocab:
    """tokenizer.json and what tokenizer_config.json says beside it.

    Raises:
        AssayError: there is no tokenizer.json, it cannot be read, or it lacks tokens that the config adds.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise AssayError(
                "the folder has no tokenizer.json",
                where=str(folder),
                hint="save the model's fast tokenizer beside it (save_pretrained)",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain exceptions
            raise AssayError("the tokenizer cannot be loaded", where=str(path), got=str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._plain = harmless(self._tokenizer)
        config = read_json(folder / "tokenizer_config.json")
        self._refuse_missing(folder, config)
        named = {**read_json(folder / "special_tokens_map.json"), **config}
        self.bos_id = self._id(token_text(named.get("bos_token")))
        self.eos_id = self._id(token_text(named.get("eos_token")))
        self._anchor = self.tokenize("a", False)
        self._anchor_text = self.decode_whole(self._anchor)

    def _refuse_missing(self, folder: Path, config: dict[str, object]) -> None:
        added = config.get("added_tokens_decoder")
        entries = [(int(i), token_text(token)) for i, token in added.items()] if isinstance(added, dict) else []
        other = [f"{token} ({index})" for index, token in entries if token and self._id(token) != index]
        if other:
            raise AssayError(
                "tokenizer_config.json adds tokens that tokenizer.json does not have",
                where=str(folder),
                got=listed(other),
                hint="save the tokenizer again with transformers (save_pretrained)",
            )

    def _id(self, token: str | None) -> int | None:
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found

    def tokenize(self, text: str, control: bool) -> list[int]:
        """Ids without BOS or EOS; `control`: the text is one special token. Other text never becomes one."""
        if control:
            token = self._id(text)
            if token is None:
                raise AssayError("the template writes a special token the tokenizer does not have", got=text)
            return [token]
        self._plain.encode_special_tokens = True
        return self._ids(self._plain, text, special=False)

    def tokenize_raw(self, text: str) -> list[int]:
        """Ids with the tokenizer's default special tokens, those that are spelled in the text included."""
        self._tokenizer.encode_special_tokens = False
        return self._ids(self._tokenizer, text, special=True)

    def _ids(self, tokenizer: Any, text: str, *, special: bool) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=special).ids)
        except (TypeError, UnicodeEncodeError):
            raise AssayError("the text holds half of a surrogate pair, which is no character") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` as a continuation, its leading space kept (SentencePiece decoders drop a text's first)."""
        return self.decode_whole([*self._anchor, *ids])[len(self._anchor_text) :]

    def decode_whole(self, ids: Sequence[int]) -> str:
        """The text of `ids` as a whole text: SentencePiece's mark before its first word is no space."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
