"""Documents that come twice: within a split, and across splits (leakage), also where they are nearly the same.

Two documents are the same when they agree but for case and white space. They are nearly the same when the Jaccard
similarity of their sets of 8-word shingles is at least 0.8 (Broder, "On the resemblance and containment of documents",
1997), found exactly by an inverted index over the held-out shingles. A summary of at least 8 words that a held-out
example has too is a leak as well: its document was merely reformatted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from contract.example import Example

SHINGLE_WORDS = 8
NEAR_JACCARD = 0.8

Why = Literal["repeated", "leak: same document", "leak: near-duplicate", "leak: same summary"]


@dataclass(frozen=True)
class Dropped:
    """One row that was left out: `id` in `split`, because of `other_id` in `other_split`."""

    split: str
    id: str
    why: Why
    other_split: str
    other_id: str
    jaccard: float | None = None


def normalised(text: str) -> str:
    """Case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> set[int]:
    """Hashes of every run of 8 words of a normalised text; of all its words where it has fewer."""
    words = text.split()
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def drop_repeats(split: str, examples: Iterable[Example]) -> tuple[list[Example], list[Dropped]]:
    """Keep the first of all examples with the same document."""
    first: dict[str, str] = {}
    kept, dropped = [], []
    for example in examples:
        text = normalised(example.document)
        if text in first:
            dropped.append(Dropped(split, example.id, "repeated", split, first[text]))
        else:
            first[text] = example.id
            kept.append(example)
    return kept, dropped


def drop_leaks(
    split: str, examples: Iterable[Example], held_out: Mapping[str, Iterable[Example]]
) -> tuple[list[Example], list[Dropped]]:
    """Leave out the examples of `split` that a held-out split has too."""
    rows = [(name, example) for name, others in held_out.items() for example in others]
    by_document = {normalised(example.document): index for index, (_, example) in enumerate(rows)}
    by_summary = {
        text: index
        for index, (_, example) in enumerate(rows)
        for reference in example.references
        if len((text := normalised(reference)).split()) >= SHINGLE_WORDS
    }
    sizes: list[int] = []
    postings: dict[int, list[int]] = defaultdict(list)
    for index, (_, example) in enumerate(rows):
        held = shingles(normalised(example.document))
        sizes.append(len(held))
        for shingle in held:
            postings[shingle].append(index)

    kept, dropped = [], []
    for example in examples:
        found = _leak(example, by_document, by_summary, postings, sizes)
        if found is None:
            kept.append(example)
        else:
            index, why, jaccard = found
            dropped.append(Dropped(split, example.id, why, rows[index][0], rows[index][1].id, jaccard))
    return kept, dropped


def _leak(
    example: Example,
    by_document: Mapping[str, int],
    by_summary: Mapping[str, int],
    postings: Mapping[int, list[int]],
    sizes: list[int],
) -> tuple[int, Why, float | None] | None:
    text = normalised(example.document)
    if text in by_document:
        return by_document[text], "leak: same document", 1.0
    own = shingles(text)
    shared: Counter[int] = Counter()
    for shingle in own:
        shared.update(postings.get(shingle, ()))
    jaccard, nearest = max(
        ((count / (len(own) + sizes[index] - count), -index) for index, count in shared.items()), default=(0.0, 0)
    )
    if jaccard >= NEAR_JACCARD:
        return -nearest, "leak: near-duplicate", round(jaccard, 4)
    for reference in example.references:
        if (summary := normalised(reference)) in by_summary:
            return by_summary[summary], "leak: same summary", None
    return None
