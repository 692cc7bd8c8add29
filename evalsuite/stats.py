"""Intervals that are shown, by bootstrap over documents; and what an interval decides: pass, fail, or too little data.

What the gate judges by is in evalsuite/judged.py: a percentile bootstrap cannot show what was not drawn. This one is
for figures that are only read: scores in tables, and ratios in benchmarks. Documents are resampled, not tokens: the
tokens of one summary are not independent (Koehn 2004, "Statistical Significance Tests for Machine Translation
Evaluation"). 10,000 resamples, seeded, percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from contract.errors import AssayError
from contract.verdict import Outcome
from evalsuite.results import Interval

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
_CHUNK_ELEMENTS = 4_000_000  # resampled indices held at a time


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """Index blocks [some resamples, n]; the same for the same n and seed, so that statistics stay paired."""
    import numpy as np

    random = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _CHUNK_ELEMENTS // n))
    for start in range(0, RESAMPLES, block):
        yield random.integers(0, n, (min(block, RESAMPLES - start), n), dtype=np.int32)


def interval_of_ratio(sums: Sequence[float], weights: Sequence[float], seed: int = 0) -> Interval:
    """sum(sums) / sum(weights) over documents: a mean per token when given per-document sums and token counts.

    Raises:
        AssayError: there is no document.
    """
    import numpy as np

    if not len(sums) or len(sums) != len(weights):
        raise AssayError("no interval without documents", got=f"{len(sums)} sums and {len(weights)} weights")
    top, bottom = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    means = np.concatenate([top[i].sum(1) / bottom[i].sum(1) for i in _resamples(len(top), seed)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def interval_of_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean over documents."""
    return interval_of_ratio(values, [1.0] * len(values), seed)


def intervals_of_means(columns: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, Interval]:
    """The mean of each column over the same documents: what `interval_of_mean` finds, for many columns at once.

    Raises:
        AssayError: there is no document, or the columns differ in length.
    """
    import numpy as np

    lengths = {len(values) for values in columns.values()}
    if not columns:
        return {}
    if len(lengths) != 1 or 0 in lengths:
        raise AssayError("no interval without documents", got=f"columns of {sorted(lengths)} values")
    values = np.array(list(columns.values()), np.float64).T
    n = len(values)
    means = np.concatenate([_counts(block, n) @ values / n for block in _resamples(n, seed)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {
        name: Interval(float(values[:, at].mean()), float(low[at]), float(high[at]), n)
        for at, name in enumerate(columns)
    }


def _counts(block: np.ndarray, n: int) -> np.ndarray:
    """How often each document is in each resample, float64 [resamples, n]."""
    import numpy as np

    flat = block + n * np.arange(len(block), dtype=np.int64)[:, None]
    return np.bincount(flat.ravel(), minlength=len(block) * n).reshape(len(block), n).astype(np.float64)


def exp_interval(interval: Interval) -> Interval:
    """exp of an interval: from a mean log ratio to a ratio."""
    return Interval(exp(interval.mean), exp(interval.low), exp(interval.high), interval.n)


def exp(value: float) -> float:
    """e to the `value`, at most e^700: a ruined model's perplexity stays a number that JSON can hold."""
    return math.exp(min(value, 700.0))


def at_most(interval: Interval, limit: float) -> Outcome:
    """pass if all of the interval is at or below `limit`, fail if all is above."""
    return "pass" if interval.high <= limit else "fail" if interval.low > limit else "inconclusive"


def at_least(interval: Interval, limit: float) -> Outcome:
    """pass if all of the interval is at or above `limit`, fail if all is below."""
    return "pass" if interval.low >= limit else "fail" if interval.high < limit else "inconclusive"


def non_inferior(difference: Interval, margin: float) -> Outcome:
    """Non-inferiority of (artifact - reference): pass if low > -margin, fail if high < -margin."""
    return "pass" if difference.low > -margin else "fail" if difference.high < -margin else "inconclusive"


def documents_needed(interval: Interval, limit: float) -> int | None:
    """Roughly how many documents would decide, were the mean to stay: half-widths shrink with √n.

    Where nothing was seen (a loss of exactly 0, an agreement of exactly 1) they shrink with n.
    None: no number would. Rounded up to two digits, for it is no more than a rule of thumb.
    """
    gap = abs(interval.mean - limit)
    half = interval.high - interval.mean if interval.mean < limit else interval.mean - interval.low
    if gap <= 0 or half <= 0:
        return None
    exact = interval.n * (half / gap) ** (1 if interval.mean in (0.0, 1.0) else 2)
    if exact > 1e7:
        return None
    step = 10 ** max(0, math.floor(math.log10(exact)) - 1)
    return max(interval.n + 1, math.ceil(exact / step) * step)
