"""The intervals that the gate judges by: exact for shares, and for skewed means one that does not collapse.

A percentile bootstrap cannot show what was not drawn: where no document lost anything it says that none can. These
intervals allow for what was not seen. Nothing is resampled, so nothing is random. Documents are the sample, not
tokens: the tokens of one summary are not independent. `benchmarks/coverage.py` measures how often they are wrong.

KL, or tokens with another first choice: most documents add little to the sum and some of them much, so it is made of
jumps of different sizes. Fay and Feuer (1997, "Confidence intervals for directly standardized rates: a method based on
the gamma distribution") bound such a sum from above as if one more jump, of the largest size, had just not been seen;
for jumps of one size that is the exact Poisson interval. Here the jump is a quarter larger than the largest seen, and
the variance is that of a ratio, widened as Student's t is. Both were chosen by measuring: with lognormal documents
(σ 1) whose mean is at the limit, less than 3.5% of evaluations pass, from 20 documents on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from contract.errors import AssayError
from contract.sample_size import CHANGED_SUMMARY_POINTS
from contract.shares import TAIL, share_interval
from evalsuite.gamma import gamma_quantile
from evalsuite.results import Interval

if TYPE_CHECKING:
    import numpy as np

_JUMP = 1.25  # of the largest seen
_Z_SQUARED = 1.96**2


def interval_of_share(hits: Sequence[bool]) -> Interval:
    """The share of documents that are hits, with its exact interval (Clopper and Pearson).

    Raises:
        AssayError: there is no document.
    """
    n = len(hits)
    if not n:
        raise AssayError("no interval without documents", got="none")
    found = sum(map(bool, hits))
    return Interval(found / n, *share_interval(found, n), n)


def difference_of_shares(ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """The share of ours less that of theirs, over the same documents.

    What differs is the share of documents that only we have less the share that only they have. Their exact intervals
    are put together by Newcombe's squares (1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data") with the correlation of two cells of a multinomial. Where nothing was gained, the
    most that may have been lost is the exact bound of the losses, and the other way round.

    Raises:
        AssayError: there is no document, or there are other numbers of them.
    """
    n = _same_length(ours, theirs)
    gained = sum(bool(a) and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(bool(b) and not a for a, b in zip(ours, theirs, strict=True))
    together = math.sqrt(gained * lost / ((n - gained) * (n - lost))) if gained and lost else 0.0
    low, high = _of_difference(gained / n, share_interval(gained, n), lost / n, share_interval(lost, n), together)
    return Interval((gained - lost) / n, max(low, -1.0), min(high, 1.0), n)


def interval_of_costs(sums: Sequence[float], weights: Sequence[float], least_jump: float = 0.0) -> Interval:
    """sum(sums) / sum(weights) of what is never negative: KL per token, tokens with another first choice.

    Args:
        sums: per document, not negative.
        weights: per document, how much of it there is: tokens.
        least_jump: the least that a document adds to the sums when it adds anything; with it the interval does not
            collapse where nothing was seen.

    Raises:
        AssayError: there is no document.
    """
    top, bottom = _arrays(sums, weights)
    total, n = float(bottom.sum()), len(top)
    mean = float(top.sum()) / total
    variance = float(((top - mean * bottom) ** 2).sum()) / total**2 * _widened(n)
    jump = max(_JUMP * float(top.max()), least_jump) / total
    return Interval(mean, *_of_jumps(mean, variance, jump), n)


def interval_of_change(sums: Sequence[float], weights: Sequence[float], least_jump: float = 0.0) -> Interval:
    """sum(sums) / sum(weights) of what may be gain or loss: a log ratio of likelihoods, a difference of ROUGE.

    Losses and gains have an interval each, as costs do, with one size of jump for both; the two are put together by
    Newcombe's squares. Their covariance is shared out so that the two variances are together that of the difference.

    Raises:
        AssayError: there is no document.
    """
    import numpy as np

    top, bottom = _arrays(sums, weights)
    total, n = float(bottom.sum()), len(top)
    up, down = np.maximum(top, 0), np.maximum(-top, 0)
    gained, lost = float(up.sum()) / total, float(down.sum()) / total
    rest_up, rest_down = up - gained * bottom, down - lost * bottom
    shared = float((rest_up * rest_down).sum())
    scale = _widened(n) / total**2
    jump = max(_JUMP * float(np.abs(top).max()), least_jump) / total
    low, high = _of_difference(
        gained,
        _of_jumps(gained, max(0.0, float((rest_up**2).sum()) - shared) * scale, jump),
        lost,
        _of_jumps(lost, max(0.0, float((rest_down**2).sum()) - shared) * scale, jump),
    )
    return Interval(gained - lost, low, high, n)


def difference_of_rouge(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """mean(ours - theirs) in points, document by document.

    Where few or no summaries differ, one more that does is taken to differ by CHANGED_SUMMARY_POINTS.

    Raises:
        AssayError: there is no document, or there are other numbers of them.
    """
    n = _same_length(ours, theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return interval_of_change(differences, [1.0] * n, CHANGED_SUMMARY_POINTS)


def _of_jumps(mean: float, variance: float, jump: float) -> tuple[float, float]:
    low = 0.0
    if mean > 0:
        low = variance / mean * gamma_quantile(TAIL, mean**2 / variance) if variance > 0 else mean
    if mean + jump <= 0:
        return low, 0.0
    scale = (variance + jump**2) / (mean + jump)
    return low, scale * gamma_quantile(1 - TAIL, (mean + jump) / scale)


def _of_difference(
    gained: float, of_gained: tuple[float, float], lost: float, of_lost: tuple[float, float], together: float = 0.0
) -> tuple[float, float]:
    """`together` is how strongly gains and losses exclude each other: their correlation with its sign turned."""

    def reach(a: float, b: float) -> float:
        return math.sqrt(a**2 + b**2 + 2 * together * a * b)

    low = gained - lost - reach(gained - of_gained[0], of_lost[1] - lost)
    return low, gained - lost + reach(of_gained[1] - gained, lost - of_lost[0])


def _widened(n: int) -> float:
    """n/(n-1), times Student's t over the normal quantile, squared (its first term in 1/n)."""
    return 1.0 if n < 2 else n / (n - 1) * (1 + (_Z_SQUARED + 1) / (2 * (n - 1)))


def _same_length(ours: Sequence[object], theirs: Sequence[object]) -> int:
    if len(ours) != len(theirs):
        raise AssayError("a paired difference needs the same documents", got=f"{len(ours)} and {len(theirs)}")
    if not len(ours):
        raise AssayError("no interval without documents", got="none")
    return len(ours)


def _arrays(sums: Sequence[float], weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not len(sums) or len(sums) != len(weights):
        raise AssayError("no interval without documents", got=f"{len(sums)} sums and {len(weights)} weights")
    return np.asarray(sums, np.float64), np.asarray(weights, np.float64)
