"""The length report: how many tokens template, documents and summaries take, and what would be cut or refused."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from contract.errors import AssayError
from contract.example import Example
from contract.model_folder import resolve_model
from trainer.rows import AnyEncoder, encoder_of
from trainer.tokenize import load_tokenizer, targets

if TYPE_CHECKING:
    from contract.recipe import Recipe
    from trainer.data import Splits


@dataclass(frozen=True)
class Spread:
    """A distribution of lengths in tokens."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True)
class SplitLengths:
    """Lengths of one split in tokens. `cut`: documents that lose their end, and how many tokens; `refused`: row ids
    whose summary leaves no room for any document."""

    rows: int
    document: Spread
    summary: Spread
    cut: int
    cut_tokens: Spread | None
    refused: tuple[str, ...]


@dataclass(frozen=True)
class LengthReport:
    """`template_tokens`: the prompt around an empty document."""

    max_length: int
    template_tokens: int
    plain_template: bool  # the model has no chat template; the built-in completion format is used
    splits: dict[str, SplitLengths]

    def as_dict(self) -> dict[str, object]:
        """As `assay data --json` prints it."""
        return asdict(self)


def length_report(recipe: Recipe, splits: Splits) -> LengthReport:
    """Measure every split with the base model's tokenizer.

    Raises:
        AssayError: the base or its tokenizer cannot be found, or the recipe's lengths exceed its context.
    """
    folder = resolve_model(recipe.model.base, recipe.model.revision)
    encoder = encoder_of(folder, recipe, load_tokenizer(folder))
    return LengthReport(
        encoder.max_length,
        len(encoder.prompt("")),
        encoder.plain,
        {name: _measure(encoder, examples) for name, examples in splits.named().items()},
    )


def _measure(encoder: AnyEncoder, examples: Sequence[Example]) -> SplitLengths:
    documents = [len(encoder.tokenize(example.document, False)) for example in examples]
    summaries, cuts, refused = [], [], []
    for row_id, document, summary in targets(examples):
        summaries.append(len(encoder.completion(document, summary)))
        try:
            cut = encoder.row(row_id, document, summary).cut_tokens
        except AssayError:
            refused.append(row_id)
        else:
            cuts += [cut] if cut else []
    return SplitLengths(
        len(summaries), spread(documents), spread(summaries), len(cuts), spread(cuts) if cuts else None, tuple(refused)
    )


def spread(values: Sequence[int]) -> Spread:
    """Minimum, median, 95th percentile (nearest rank) and maximum."""
    ordered = sorted(values)
    return Spread(ordered[0], round(statistics.median(ordered)), ordered[-(-95 * len(ordered) // 100) - 1], ordered[-1])
