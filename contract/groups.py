"""One document, one example: rows of the same document are its references, never documents of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from contract.similarity import same_key

if TYPE_CHECKING:
    from contract.example import Example


def group(examples: Iterable[Example]) -> list[Example]:
    """Join the examples of one document, the same but for case and white space (`contract.similarity.same_key`).

    Id and text are those of its first example, the references all that differ, each in the order of the rows. What is
    grouped already comes back as it is.
    """
    rows: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        rows[same_key(example.document)].append(example)
    return [_joined(same) for same in rows.values()]


def _joined(rows: list[Example]) -> Example:
    return replace(
        rows[0],
        references=tuple(dict.fromkeys(text for row in rows for text in row.references)),
        row_ids=tuple(row_id for row in rows for row_id in row.row_ids or (row.id,)),
    )


def row_count(examples: Iterable[Example]) -> int:
    """How many rows of the data the examples were read from."""
    return sum(len(example.row_ids) or 1 for example in examples)
