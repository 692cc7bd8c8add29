"""The tokenizer of a GGUF file as llama.cpp reads it, loaded without the weights."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from contract.errors import AssayError
from export.gguf_pre_tokenizers import nearest_name
from export.quantize import quiet_llama


class LlamaVocab:
    """llama.cpp's vocabulary. Use as a context manager.

    Raises:
        AssayError: llama.cpp cannot load it; its first error is given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> LlamaVocab:
        import llama_cpp

        with ExitStack() as stack:
            log = stack.enter_context(quiet_llama())
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = True
            self._model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), params)
            if not self._model:
                # llama.cpp gives no code; its words decide which line is shown, and which name is suggested
                errors = [line for line in log if "error" in line]
                said = (errors[0] if errors else "".join(log[-4:])).strip()
                unknown = re.search(r"unknown pre-tokenizer type: '(.*)'", said)
                raise AssayError(
                    "llama.cpp cannot load the tokenizer",
                    where=str(self.path),
                    got=said,
                    hint=nearest_name(unknown[1]) if unknown else None,
                )
            vocab = llama_cpp.llama_model_get_vocab(self._model)
            assert vocab is not None
            self._vocab = vocab
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        import llama_cpp

        llama_cpp.llama_model_free(self._model)
        self._stack.close()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text.
            add_special: with BOS and EOS as the file says.
            parse_special: control tokens in the text become control tokens.
        """
        import llama_cpp

        data = text.encode()
        size = len(data) + 16
        ids = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, size, add_special, parse_special)
        if count < 0:
            raise AssayError("llama.cpp made more tokens than there are bytes", where=str(self.path), got=f"{-count}")
        return list(ids[:count])

    def size(self) -> int:
        """How many tokens there are."""
        import llama_cpp

        return int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    def end_ids(self) -> set[int]:
        """Every id llama.cpp takes for the end of a generation."""
        import llama_cpp

        return {token for token in range(self.size()) if llama_cpp.llama_vocab_is_eog(self._vocab, token)}
