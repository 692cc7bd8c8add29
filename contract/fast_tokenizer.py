"""transformers' tokenizer of a folder, by its tokenizer.json where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.gguf_leftovers import refuse_leftovers
from contract.model_folder import VOCABULARIES, read_json

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
        AssayError: there is none (transformers 5 would make one of special tokens alone), its files contradict each
            other, or transformers made it of a GGUF and it is not the GGUF's.
        Exception: whatever transformers and tokenizers raise; they have no narrower type for all of it.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise AssayError("there is no tokenizer", where=str(folder), expected=f"one of {listed(VOCABULARIES)}")
    refuse_leftovers(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path, named = folder / "tokenizer.json", _says_itself(folder)
    loader: Any = PreTrainedTokenizerFast if path.is_file() and named else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **options
    )
    if path.is_file() and not (named and _leaves_ends_alone(folder)):
        _put_back(tokenizer, path)
    return tokenizer


def _says_itself(folder: Path) -> bool:
    """Is EOS named? The first folders of GPT-2, T5 and BART leave it, and all the rest, to their class."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    return any(read_json(folder / name).get("eos_token") for name in files)


def _leaves_ends_alone(folder: Path) -> bool:
    """Does tokenizer_config.json leave BOS and EOS to the file? transformers 5 puts what it says over the file's."""
    return not {"add_bos_token", "add_eos_token"} & set(read_json(folder / "tokenizer_config.json"))


def _put_back(tokenizer: Any, path: Path) -> None:
    """Exchange the engine of a loaded tokenizer for what the file holds."""
    from tokenizers import Tokenizer

    made, own = tokenizer.backend_tokenizer, Tokenizer.from_file(str(path))
    if own.post_processor is None:  # then the configuration's word on BOS holds
        own.post_processor = made.post_processor
    wanted, known = made.get_added_tokens_decoder(), own.get_added_tokens_decoder()
    own.add_tokens([token for number, token in sorted(wanted.items()) if number not in known])
    moved = [token.content for number, token in wanted.items() if own.token_to_id(token.content) != number]
    if moved:
        raise AssayError(
            "tokens that tokenizer_config.json adds have other numbers in tokenizer.json",
            where=str(path.parent),
            got=listed(moved),
            hint="save the tokenizer again with transformers (save_pretrained)",
        )
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = made.encode_special_tokens
    tokenizer._tokenizer = own
