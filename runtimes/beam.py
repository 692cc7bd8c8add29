"""Beam search over one prompt, as transformers 4.57 defines it (`GenerationMixin._beam_search`), in numpy.

What is returned is the finished hypothesis with the highest sum of log-probabilities over its length to the power of
the length penalty. All sums are float32, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.errors import AssayError
from contract.runtime import GenerateParams
from runtimes.logits_rules import LogitsRules

_NEVER = np.float32(-1e9)


@dataclass
class _Kept:
    """Hypotheses kept as answers: scores float32 [beams], ids, and whether each has come to its end."""

    scores: np.ndarray
    ids: list[tuple[int, ...]]
    ended: np.ndarray


class BeamSearch:
    """The beams of one prompt. `rules` see what has been written; `most` tokens at most."""

    def __init__(self, params: GenerateParams, rules: LogitsRules, end_ids: frozenset[int], most: int) -> None:
        self._params, self._rules, self._end_ids, self._most = params, rules, end_ids, most
        beams = params.num_beams
        self._candidates = max(2, 1 + len(end_ids)) * beams
        self._running: list[tuple[int, ...]] = [()] * beams
        self._scores = np.full(beams, _NEVER)
        self._scores[0] = 0  # all beams are the same at first: only one may be continued
        self._kept = _Kept(np.full(beams, _NEVER), [()] * beams, np.zeros(beams, np.bool_))
        self._hopeful = True  # may a running beam still beat what is kept?
        self.over = False

    @property
    def ids(self) -> tuple[int, ...]:
        """The best answer, its stop id included where it has one."""
        return self._kept.ids[0]

    @property
    def tokens(self) -> list[int]:
        """What every beam's model is to be fed next."""
        return [ids[-1] for ids in self._running]

    def advance(self, logits: np.ndarray) -> list[int]:
        """Continue every beam by one token.

        Args:
            logits: float32 [beams, vocab_size] of the running beams.

        Returns:
            For each of the new beams, which of the old ones it continues.
        """
        if not np.isfinite(logits.max(axis=1)).all():
            raise AssayError(
                "the model's logits are not finite, so nothing can be generated",
                hint="its weights are damaged or overflowed: export it again, in another dtype",
            )
        logs = _log_softmax(logits)
        scores = np.stack([self._rules.apply(row, ids) for row, ids in zip(logs, self._running, strict=True)])
        total = (scores + self._scores[:, None]).ravel()
        best = _largest(total, self._candidates)
        parents, tokens = np.divmod(best, logits.shape[1])
        ids = [(*self._running[parent], int(token)) for parent, token in zip(parents, tokens, strict=True)]
        made = len(ids[0])
        ends = np.array([token in self._end_ids or made >= self._most for token in tokens.tolist()])
        found = total[best]
        running = found + ends * _NEVER
        chosen = _largest(running, self._params.num_beams)
        self._keep(found, ids, ends, made)
        self._running, self._scores = [ids[i] for i in chosen], running[chosen]
        self._judge(ends, made)
        return [int(parents[i]) for i in chosen]

    def _keep(self, found: np.ndarray, ids: Sequence[tuple[int, ...]], ends: np.ndarray, made: int) -> None:
        """Take up those among the best `num_beams` candidates that have just come to their end."""
        beams, kept = self._params.num_beams, self._kept
        just = ends & (np.arange(len(ends)) < beams)
        scores = found / np.float32(made**self._params.length_penalty)
        scores = scores + ~just * _NEVER
        if (kept.ended.all() and self._params.early_stopping) or not self._hopeful:
            scores = scores + _NEVER
        merged = np.concatenate([kept.scores, scores])
        best = _largest(merged, beams)
        every = [*kept.ids, *ids]
        self._kept = _Kept(merged[best], [every[i] for i in best], np.concatenate([kept.ended, just])[best])

    def _judge(self, ends: np.ndarray, made: int) -> None:
        """Is it over? By transformers' heuristic the best running beam ends no better than it stands now."""
        kept = self._kept
        possible = self._scores[0] / np.float32(made**self._params.length_penalty)
        worst = np.where(kept.ended, kept.scores.min(), _NEVER)
        self._hopeful = self._hopeful and bool((possible > worst).any())
        full = bool(kept.ended.all()) and self._params.early_stopping
        self.over = not self._hopeful or full or bool(ends.all())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the largest values, the largest first."""
    count = min(count, len(values))
    some = np.argpartition(-values, count - 1)[:count]
    return some[np.lexsort((some, -values[some]))]
