"""transformers' tokenizer of a folder, by its tokenizer.json where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.gguf_leftovers import refuse_leftovers
from contract.model_folder import VOCABULARIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_fast(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer that every engine but transformers' own classes sees: the one that tokenizer.json describes.

    transformers 5 builds a tokenizer of a named class (RobertaTokenizer, T5Tokenizer …) from its vocabulary alone, and
    cuts text as the class does, whatever normalizer and pre-tokenizer the file has.

    Args:
        folder: with the tokenizer's files; without tokenizer.json they are converted.
        options: for `from_pretrained`.

    Raises:
        AssayError: there is none (transformers 5 would make one of special tokens alone), or one that transformers made
            of a GGUF and that is not the GGUF's.
        Exception: whatever transformers and tokenizers raise; they have no narrower type for all of it.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise AssayError("there is no tokenizer", where=str(folder), expected=f"one of {listed(VOCABULARIES)}")
    refuse_leftovers(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    described = (folder / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if described else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **options
    )
    return tokenizer
