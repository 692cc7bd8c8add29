"""Scores a given target for every prompt of a batch while the batch is being written, from one pass over the prompts.

Right after the prompts were computed, and before the first new token is fed, the targets are run behind them in the
same key-value cache and taken off again. The logits from which each new token was chosen are kept as well: they are the
teacher-forced logits of what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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
        self.given: list[np.ndarray] = []

    @property
    def most_tokens(self) -> int:
        """Cells of the cache the targets need behind the prompts, at most."""
        return max(len(target) for target in self._targets)

    @property
    def written(self) -> list[np.ndarray]:
        """Per answer float32 [its tokens and the stop id that was chosen, vocab_size]."""
        return [np.stack(self._written[id(answer)]) for answer in self._answers]

    def score(
        self, model: Any, cache: Any, hidden: torch.Tensor, positions: torch.Tensor, first: np.ndarray, width: int
    ) -> None:
        """Run the targets behind the prompts, and leave the cache as it was.

        Args:
            model: a causal language model of transformers whose layers all see everything before them.
            cache: of the prompts, padded on the left to `width`; its layers can `shorten`.
            hidden: added to the products, float32 [rows, 1, 1, cells]: 0 where a cell may be seen, else very low.
            positions: int64 [rows, 1], of each prompt's last token.
            first: float32 [rows, vocab_size], the logits behind the prompts.
            width: cells the prompts take.
        """
        tail = self.most_tokens - 1
        rows = len(self._targets)
        logits = np.zeros((rows, 0, first.shape[1]), np.float32)
        if tail > 0:
            ids = torch.zeros(rows, tail, dtype=torch.long)
            for row, target in enumerate(self._targets):
                ids[row, : max(0, len(target) - 1)] = torch.tensor(list(target[:-1]), dtype=torch.long)
            later = torch.full((tail, tail), torch.finfo(torch.float32).min).triu(1)
            mask = torch.cat((hidden[..., :width].expand(rows, 1, tail, width), later.expand(rows, 1, tail, tail)), 3)
            logits = (
                model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions + 1 + torch.arange(tail),
                    past_key_values=cache,
                    use_cache=True,
                )
                .logits.float()
                .numpy()
            )
            for layer in cache.layers:
                layer.shorten(width)
        self.given = [
            np.concatenate((first[row : row + 1], logits[row, : len(target) - 1])) if target else logits[row, :0]
            for row, target in enumerate(self._targets)
        ]

    def keep(self, answers: Sequence[Answer], logits: np.ndarray) -> None:
        """Keep the rows [answers, vocab_size] from which the running answers choose next."""
        for answer, row in zip(answers, logits, strict=True):
            if answer.stop is None:
                self._written[id(answer)].append(row.copy())
