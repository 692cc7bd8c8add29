"""From examples to token rows: prompt and completion by the contract's prompt logic, the document shortened to fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from contract.errors import AssayError, listed
from contract.example import Example
from contract.fast_tokenizer import load_fast
from contract.model_folder import chat_format, read_json, stop_ids
from contract.prompt import (
    ChatFormat,
    PromptSpec,
    Tokenize,
    completion_ids,
    has_double_bos,
    hf_tokenize,
    prompt_ids,
    shorten,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = TypeVar("Row", covariant=True)


@dataclass(frozen=True)
class TokenRow:
    """One training row. `cut_tokens`: how many prompt tokens of the document did not fit."""

    id: str
    input_ids: list[int]
    prompt_tokens: int
    cut_tokens: int

    @property
    def completion_mask(self) -> list[int]:
        """0 on the prompt, 1 on the completion."""
        return [0] * self.prompt_tokens + [1] * self.supervised_tokens

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.input_ids)

    @property
    def supervised_tokens(self) -> int:
        """How many tokens the loss is taken on."""
        return len(self.input_ids) - self.prompt_tokens


class RowEncoder(Protocol[Row]):
    """What makes rows of one kind from examples."""

    def prompt(self, document: str) -> list[int]:
        """The ids of the prompt, uncut."""
        ...

    def completion(self, document: str, summary: str) -> list[int]:
        """The ids of the summary, closing token included."""
        ...

    def row(self, row_id: str, document: str, summary: str) -> Row:
        """A row that fits; raises AssayError where none does."""
        ...

    @property
    def fits(self) -> str:
        """What must fit, for messages."""
        ...


@dataclass(frozen=True)
class Encoder:
    """Turns examples of one prompt into ids of one tokenizer. `max_length` bounds prompt and completion together."""

    chat: ChatFormat
    spec: PromptSpec
    tokenize: Tokenize
    bos_id: int | None
    max_length: int

    @property
    def plain(self) -> bool:
        """Does the model come without a chat template?"""
        return self.chat.plain

    @property
    def fits(self) -> str:
        """What must fit, for messages."""
        return f"prompt and summary within train.max_length = {self.max_length}"

    def prompt(self, document: str) -> list[int]:
        """The ids of the prompt, uncut."""
        return prompt_ids(self.chat, self.spec.messages(document), self.tokenize, self.bos_id)

    def completion(self, document: str, summary: str) -> list[int]:
        """The ids of the summary, closing token included."""
        return completion_ids(self.chat, self.spec.messages(document), summary, self.tokenize, self.bos_id)

    def row(self, row_id: str, document: str, summary: str) -> TokenRow:
        """Prompt and completion in at most `max_length` tokens; only the document is ever cut.

        Raises:
            AssayError: the summary leaves no room for any of the document.
        """
        prompt, completion = self.prompt(document), self.completion(document, summary)
        cut = 0
        if len(prompt) + len(completion) > self.max_length:
            full, room = len(prompt), self.max_length - len(completion)
            document = shorten(document, lambda text: len(self.prompt(text)) <= room)
            prompt, completion = self.prompt(document), self.completion(document, summary)
            cut = full - len(prompt)
        return TokenRow(row_id, [*prompt, *completion], len(prompt), cut)

    def check(self, rows: Sequence[TokenRow], stops: Iterable[int]) -> dict[str, float]:
        """`check_rows` for this encoder's rows."""
        return check_rows(rows, stops, self.bos_id)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a pad token that is not needed to tell EOS from padding.

    Raises:
        AssayError: the folder holds none, or one that cannot be read.
    """
    try:
        return load_fast(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssayError("the tokenizer cannot be loaded", where=str(folder), got=str(error).splitlines()[0]) from None


def make_encoder(folder: Path, spec: PromptSpec, max_length: int, tokenizer: Any) -> Encoder:
    """The encoder of a base model folder.

    Raises:
        AssayError: `max_length` exceeds the model's context.
    """
    context = read_json(folder / "config.json").get("max_position_embeddings")
    if isinstance(context, int) and max_length > context:
        raise AssayError(
            "train.max_length exceeds the model's context",
            where=str(folder),
            got=str(max_length),
            expected=f"at most {context}",
        )
    chat = chat_format(folder, spec.template, date=spec.date)
    return Encoder(chat, spec, hf_tokenize(tokenizer), tokenizer.bos_token_id, max_length)


def closing_id(encoder: RowEncoder[Any]) -> int:
    """The token that ends every completion."""
    return encoder.completion("x", "x")[-1]


def all_stop_ids(folder: Path, encoder: RowEncoder[Any], eos_id: int | None) -> list[int]:
    """Every id that ends generation: the base's, the tokenizer's EOS, and the token that closes the turn; sorted."""
    return sorted({*stop_ids(folder), closing_id(encoder), *([] if eos_id is None else [eos_id])})


def targets(examples: Iterable[Example]) -> Iterable[tuple[str, str, str]]:
    """(row id, document, summary) for every reference of every example."""
    for example in examples:
        for number, summary in enumerate(example.references, 1):
            yield example.id if number == 1 else f"{example.id}#{number}", example.document, summary


def encode_rows(encoder: RowEncoder[Row], examples: Sequence[Example]) -> list[Row]:
    """One row per reference of every example, in order.

    Raises:
        AssayError: naming every example whose summary does not fit.
    """
    rows: list[Row] = []
    refused = []
    for row_id, document, summary in targets(examples):
        try:
            rows.append(encoder.row(row_id, document, summary))
        except AssayError:
            refused.append(f"{row_id} ({len(encoder.completion(document, summary))} tokens)")
    if refused:
        raise AssayError(
            "summaries are too long or leave no room for their documents, and summaries are never cut",
            where=f"{len(refused)} row(s)",
            got=listed(refused),
            expected=encoder.fits,
            hint="raise that length or remove these rows; assay data lists them",
        )
    return rows


def check_rows(rows: Sequence[TokenRow], stops: Iterable[int], bos_id: int | None) -> dict[str, float]:
    """Audit what will be learned, and say how much it is.

    Returns:
        Supervised tokens per row: min, mean and total.

    Raises:
        AssayError: a row begins with BOS twice, has no supervised token, or does not end with a stop token.
    """
    stops = frozenset(stops)
    problems: dict[str, list[str]] = {}
    for row in rows:
        if has_double_bos(row.input_ids, bos_id):
            problems.setdefault("begins with BOS twice: template and tokenizer both add it", []).append(row.id)
        if row.supervised_tokens < 1:
            problems.setdefault("no token to learn from", []).append(row.id)
        elif row.input_ids[-1] not in stops:
            problems.setdefault("the completion does not end with a stop token", []).append(row.id)
    if problems:
        raise AssayError(
            "the training rows are not sound",
            expected="one BOS, a completion, a stop token at its end",
            got="; ".join(f"{what}: {listed(ids)}" for what, ids in problems.items()),
            hint="check the tokenizer's chat template, or set prompt.template in the recipe",
        )
    counts = [row.supervised_tokens for row in rows]
    return {"min": min(counts), "mean": sum(counts) / len(counts), "total": sum(counts)}
