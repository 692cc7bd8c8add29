"""A loaded tokenizer cuts text as its tokenizer.json says, whatever class transformers made of it.

transformers 5 takes only the vocabulary from tokenizer.json where tokenizer_config.json names a class (LlamaTokenizer,
T5Tokenizer, GemmaTokenizer …), and builds normalizer, pre-tokenizer and decoder as that class has them. Version 4 took
the file, models were trained on what it says, and all other engines run what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed


def as_in_its_file(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, its engine exchanged for what tokenizer.json holds; one without such a file as it is.

    Args:
        tokenizer: a transformers tokenizer; it is changed.
        folder: with the tokenizer's files.

    Raises:
        AssayError: a token that tokenizer_config.json adds has another number in tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    made = getattr(tokenizer, "backend_tokenizer", None)
    if made is None or not path.is_file():
        return tokenizer
    own = Tokenizer.from_file(str(path))
    if own.post_processor is None:  # then tokenizer_config.json says whether there is a BOS
        own.post_processor = made.post_processor
    wanted = made.get_added_tokens_decoder()
    known = own.get_added_tokens_decoder()
    own.add_tokens([token for number, token in sorted(wanted.items()) if number not in known])
    moved = [
        f"{token.content} ({number})" for number, token in wanted.items() if own.token_to_id(token.content) != number
    ]
    if moved:
        raise AssayError(
            "tokens that tokenizer_config.json adds have another number in tokenizer.json",
            where=str(folder),
            got=listed(moved),
            hint="save the tokenizer again with transformers (save_pretrained)",
        )
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = made.encode_special_tokens
    tokenizer._tokenizer = own
    return tokenizer
