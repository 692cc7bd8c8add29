"""Documents that two splits share (leakage), also where they are nearly the same.

The same and nearly the same are what `contract.similarity` says. A summary of at least 8 words that a held-out example
has too is a leak as well: its document was merely reformatted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from contract.example import Example
from contract.similarity import SHINGLE_WORDS, NearIndex, near_duplicates, normalised, same_key

Why = Literal["leak: same document", "leak: near-duplicate", "leak: same summary"]


@dataclass(frozen=True)
class Dropped:
    """One example that was left out: `id` in `split`, because of `other_id` in `other_split`."""

    split: str
    id: str
    why: Why
    other_split: str
    other_id: str
    jaccard: float | None = None


@dataclass(frozen=True)
class Near:
    """One example whose document is nearly that of an earlier one of the same split; both stay."""

    split: str
    id: str
    other_id: str
    jaccard: float


def near_in(split: str, examples: list[Example]) -> list[Near]:
    """Every example of a split whose document is nearly an earlier one."""
    return [
        Near(split, examples[index].id, examples[other].id, round(jaccard, 4))
        for index, other, jaccard in near_duplicates(example.document for example in examples)
    ]


def drop_leaks(
    split: str, examples: Iterable[Example], held_out: Mapping[str, Iterable[Example]]
) -> tuple[list[Example], list[Dropped]]:
    """Leave out the examples of `split` that a held-out split has too."""
    rows = [(name, example) for name, others in held_out.items() for example in others]
    by_document = {same_key(example.document): index for index, (_, example) in enumerate(rows)}
    by_summary = {
        text: index
        for index, (_, example) in enumerate(rows)
        for reference in example.references
        if len((text := normalised(reference)).split()) >= SHINGLE_WORDS
    }
    near = NearIndex(example.document for _, example in rows)
    kept, dropped = [], []
    for example in examples:
        found = _leak(example, by_document, by_summary, near)
        if found is None:
            kept.append(example)
        else:
            index, why, jaccard = found
            dropped.append(Dropped(split, example.id, why, rows[index][0], rows[index][1].id, jaccard))
    return kept, dropped


def _leak(
    example: Example, by_document: Mapping[str, int], by_summary: Mapping[str, int], near: NearIndex
) -> tuple[int, Why, float | None] | None:
    if (key := same_key(example.document)) in by_document:
        return by_document[key], "leak: same document", 1.0
    if (nearest := near.nearest(example.document)) is not None:
        index, jaccard = nearest
        return index, "leak: near-duplicate", round(jaccard, 4)
    for reference in example.references:
        if (summary := normalised(reference)) in by_summary:
            return by_summary[summary], "leak: same summary", None
    return None
