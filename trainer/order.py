"""The order in which rows are seen: fixed by the seed, rows of like length together so that little is padded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

# Rows are sorted by length within windows of this many batches: little padding, and still a random order.
_WINDOW_BATCHES = 16


def step_count(rows: int, rows_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps: `max_steps` where it is given, else what `epochs` passes over `rows` take, rounded up."""
    return max_steps if max_steps is not None else max(1, math.ceil(round(rows * epochs) / rows_per_step))


def training_order(lengths: Sequence[int], batch_size: int, total_rows: int, seed: int) -> list[int]:
    """Row indices for a whole training, every `batch_size` of them a batch.

    The epochs are laid end to end, each a permutation of all rows, so a resumed training need only skip.

    Args:
        lengths: tokens of each row.
        batch_size: rows per forward pass.
        total_rows: how many rows are seen in all; more than there are rows means several epochs.
        seed: of the permutations.

    Returns:
        `total_rows` indices into `lengths`.
    """
    generator = random.Random(seed)
    flat: list[int] = []
    while len(flat) < total_rows:
        epoch = list(range(len(lengths)))
        generator.shuffle(epoch)
        flat += epoch
    flat = flat[:total_rows]
    ordered: list[int] = []
    for start in range(0, total_rows, _WINDOW_BATCHES * batch_size):
        window = sorted(flat[start : start + _WINDOW_BATCHES * batch_size], key=lambda index: lengths[index])
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        short = [batches.pop()] if len(batches[-1]) < batch_size else []  # a batch that is not full comes last of all
        generator.shuffle(batches)
        ordered += [index for batch in [*batches, *short] for index in batch]
    return ordered


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """Evenly spaced steps at which validation loss is measured, the last step among them."""
    return sorted({math.ceil(steps * number / evaluations) for number in range(1, evaluations + 1)})
