"""Scores a given target for every prompt of a batch while the batch is being written, from one pass over the prompts.

Each target stands behind its prompt while that is read, and is not kept in the key-value cache. The logits from which
each new token was chosen are kept as well: they are the teacher-forced logits of what was written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtimes.answer import Answer


class Aside:
    """Logits of given targets and of what was written; handed to `decode_steps` with the same answers.

    Args:
        answers: what is written together.
        targets: one per answer, ids; an empty one has no logits.
    """

    def __init__(self, answers: Sequence[Answer], targets: Sequence[Sequence[int]]) -> None:
        self._targets = targets
        self._written: dict[int, list[np.ndarray]] = {id(answer): [] for answer in answers}
        self._answers = list(answers)
        self._given: dict[int, np.ndarray] = {}

    @property
    def given(self) -> list[np.ndarray]:
        """Per answer float32 [its target's tokens, vocab_size]."""
        return [self._given[row] for row in range(len(self._answers))]

    @property
    def written(self) -> list[np.ndarray]:
        """Per answer float32 [its tokens and the stop id that was chosen, vocab_size]."""
        return [np.stack(self._written[id(answer)]) for answer in self._answers]

    def fed(self, row: int) -> Sequence[int]:
        """What stands behind an answer's prompt while that is read: its target but for the last id."""
        return self._targets[row][:-1]

    def give(self, row: int, logits: np.ndarray) -> None:
        """Take the target's logits from rows [prompt's last token and all behind it, vocab_size]."""
        self._given[row] = logits[: len(self._targets[row])].copy()

    def keep(self, answers: Sequence[Answer], logits: np.ndarray) -> None:
        """Keep the rows [answers, vocab_size] from which the running answers choose next."""
        for answer, row in zip(answers, logits, strict=True):
            if answer.stop is None:
                self._written[id(answer)].append(row.copy())
