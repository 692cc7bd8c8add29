"""From examples to pairs of ids for encoder-decoders: the document shortened to fit, the summary never."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.model_folder import read_json
from contract.prompt import PromptSpec, Tokenize, hf_tokenize, shorten
from contract.seq2seq import Seq2SeqFormat, read_format, source_ids, target_ids


@dataclass(frozen=True)
class PairRow:
    """One training row: what the encoder reads and what the decoder writes, special tokens included.

    `cut_tokens`: how many of the document's tokens did not fit.
    """

    id: str
    source: list[int]
    target: list[int]
    cut_tokens: int

    @property
    def tokens(self) -> int:
        """Source and target together."""
        return len(self.source) + len(self.target)

    @property
    def supervised_tokens(self) -> int:
        """How many tokens the loss is taken on."""
        return len(self.target)


@dataclass(frozen=True)
class PairEncoder:
    """Turns examples of one prompt into ids of one tokenizer; both lengths are in tokens, special ones included."""

    form: Seq2SeqFormat
    spec: PromptSpec
    tokenize: Tokenize
    max_length: int
    max_target_length: int
    plain: bool = False  # such models have no chat template to miss

    @property
    def fits(self) -> str:
        """What must fit, for messages."""
        return f"summaries within train.max_target_length = {self.max_target_length}"

    def prompt(self, document: str) -> list[int]:
        """The encoder's ids, uncut."""
        return source_ids(self.form, self.spec.messages(document), self.tokenize)

    def completion(self, document: str, summary: str) -> list[int]:
        """The ids of the summary, closing token included."""
        return target_ids(self.form, summary, self.tokenize)

    def row(self, row_id: str, document: str, summary: str) -> PairRow:
        """Source in at most `max_length` tokens; only the document is ever cut.

        Raises:
            AssayError: the summary is longer than `max_target_length`, or nothing of the document fits.
        """
        target = self.completion(document, summary)
        if len(target) > self.max_target_length:
            raise AssayError("the summary is too long", got=str(len(target)), expected=self.fits)
        source = self.prompt(document)
        full = len(source)
        if full > self.max_length:
            source = self.prompt(shorten(document, lambda text: len(self.prompt(text)) <= self.max_length))
        return PairRow(row_id, source, target, full - len(source))

    def check(self, rows: Sequence[PairRow], stops: Iterable[int]) -> dict[str, float]:
        """`check_pairs` for this encoder's rows."""
        return check_pairs(rows, stops, self.form)


def make_pair_encoder(
    folder: Path, spec: PromptSpec, max_length: int, max_target_length: int, tokenizer: Any
) -> PairEncoder:
    """The encoder of an encoder-decoder's folder.

    Raises:
        AssayError: a length exceeds the model's context, the config names no start for the decoder, the tokenizer has
            no padding token, or puts nothing behind a text.
    """
    config = read_json(folder / "config.json")
    context = _context(config, tokenizer)
    wrong = [
        f"{name} = {value}"
        for name, value in (("train.max_length", max_length), ("train.max_target_length", max_target_length))
        if context is not None and value > context
    ]
    if wrong:
        raise AssayError(
            "rows may be longer than the model's context",
            where=str(folder),
            got=", ".join(wrong),
            expected=f"at most {context}",
        )
    start = read_json(folder / "generation_config.json").get("decoder_start_token_id")
    start = config.get("decoder_start_token_id") if start is None else start
    if not isinstance(start, int) or tokenizer.pad_token_id is None:
        raise AssayError(
            "the model does not say what its decoder starts with, or how rows are padded",
            where=str(folder),
            expected="decoder_start_token_id in config.json, a pad token in the tokenizer",
        )
    form = read_format(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda text: tokenizer(text)["input_ids"],
        start,
    )
    return PairEncoder(form, spec, hf_tokenize(tokenizer), max_length, max_target_length)


def _context(config: dict[str, Any], tokenizer: Any) -> int | None:
    for key in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None


def check_pairs(rows: Sequence[PairRow], stops: Iterable[int], form: Seq2SeqFormat) -> dict[str, float]:
    """Audit what will be learned, and say how much it is.

    Returns:
        Supervised tokens per row: min, mean and total.

    Raises:
        AssayError: a source is empty or not dressed as the tokenizer does it, or a target does not end with a stop
            token or ends with two.
    """
    stops = frozenset(stops)
    head, tail = list(form.prefix), list(form.suffix)
    problems: dict[str, list[str]] = {}
    for row in rows:
        inner = row.source[len(head) : len(row.source) - len(tail)]
        if [*head, *inner, *tail] != row.source:
            problems.setdefault("the source lacks the tokenizer's special tokens", []).append(row.id)
        elif not inner:
            problems.setdefault("nothing to read", []).append(row.id)
        if len(row.target) <= len(head) + len(tail):
            problems.setdefault("no token to learn from", []).append(row.id)
        elif row.target[-1] not in stops:
            problems.setdefault("the summary does not end with a stop token", []).append(row.id)
        elif row.target[-2] in stops:
            problems.setdefault("the summary ends with two stop tokens", []).append(row.id)
    if problems:
        raise AssayError(
            "the training rows are not sound",
            expected="a source, a summary, one stop token at its end",
            got="; ".join(f"{what}: {listed(ids)}" for what, ids in problems.items()),
            hint="check the tokenizer's special tokens and the base's eos_token_id",
        )
    counts = [row.supervised_tokens for row in rows]
    return {"min": min(counts), "mean": sum(counts) / len(counts), "total": sum(counts)}
