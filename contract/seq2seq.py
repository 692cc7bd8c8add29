"""From a document to the ids of an encoder-decoder model: the only place with their prompt logic.

Such a model has no chat template: the encoder reads the turns' text and the tokenizer's special tokens around it, the
decoder begins with one id that the config names and writes the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.errors import AssayError
from contract.prompt import Message, Tokenize


@dataclass(frozen=True)
class Seq2SeqFormat:
    """What stands around text, as ids: T5 ends with </s>, BART stands between <s> and </s>."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    decoder_start_id: int


def read_format(
    plain: Callable[[str], Sequence[int]], special: Callable[[str], Sequence[int]], decoder_start_id: int
) -> Seq2SeqFormat:
    """Read off a tokenizer what it puts around a text, from the same text without and with special tokens.

    Raises:
        AssayError: the special tokens are not just put around the text.
    """
    bare, dressed = list(plain("a")), list(special("a"))
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return Seq2SeqFormat(tuple(dressed[:start]), tuple(dressed[start + len(bare) :]), decoder_start_id)
    raise AssayError(
        "the tokenizer does not put its special tokens around a text", expected=f"… {bare} …", got=str(dressed)
    )


def source_text(messages: Sequence[Message]) -> str:
    """What the encoder reads: the turns' words, a blank line between them."""
    return "\n\n".join(message.content.strip() for message in messages)


def source_ids(form: Seq2SeqFormat, messages: Sequence[Message], tokenize: Tokenize) -> list[int]:
    """The encoder's ids, special tokens and all. Text never becomes a special token."""
    return [*form.prefix, *tokenize(source_text(messages), False), *form.suffix]


def target_ids(form: Seq2SeqFormat, text: str, tokenize: Tokenize, closing: Sequence[int] = ()) -> list[int]:
    """The ids the decoder is to write for `text`, closing token included; what it starts with is not among them.

    Args:
        form: what the tokenizer puts around a text.
        text: the answer.
        tokenize: text to ids, without special tokens.
        closing: what ends it where the tokenizer closes nothing, for those to whom any end is right.

    Raises:
        AssayError: the text is empty, or the tokenizer closes nothing.
    """
    if not text.strip():
        raise AssayError("an answer without text has no ids")
    if not form.suffix and not closing:
        raise AssayError("nothing ends the answer: the tokenizer puts no closing token behind a text")
    return [*form.prefix, *tokenize(text.strip(), False), *(form.suffix or closing)]


def decoder_input_ids(form: Seq2SeqFormat, target: Sequence[int]) -> list[int]:
    """What the decoder is fed so that row i predicts target[i]."""
    return [form.decoder_start_id, *target[:-1]]
