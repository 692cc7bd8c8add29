"""Exact intervals of shares, and how many documents a share's limit needs: plain arithmetic, no package.

The interval is Clopper and Pearson's (1934): each end is the share at which what was seen, or further out, has a
probability of 2.5%. It never collapses: of 20 documents with no loss at all, the loss is at most 16.8%.
"""

from __future__ import annotations

import math
from functools import lru_cache

TAIL = 0.025  # of a two-sided 95% interval
NONE_SEEN = -math.log(TAIL)  # 3.69: of events that come one by one, the expected number when not one was seen is below
_MOST_DOCUMENTS = 10_000_000


@lru_cache(4096)
def share_interval(hits: int, n: int) -> tuple[float, float]:
    """The exact 95% interval of a share of which `hits` of `n` documents were seen.

    Raises:
        ValueError: there is no document, or there are more hits than documents.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share")
    low = 0.0 if hits == 0 else _beta_quantile(TAIL, hits, n - hits + 1)
    high = 1.0 if hits == n else 1 - _beta_quantile(TAIL, n - hits, hits + 1)
    return low, high


def unseen_share(n: int) -> float:
    """A fault in fewer than this share of all documents may be in none of `n` of them: 1 - 0.025^(1/n)."""
    return share_interval(0, n)[1]


@lru_cache(4096)
def documents_for_share(limit: float, hits: int = 0) -> int | None:
    """The least number of documents with which a share is shown to be within `limit`, though `hits` have it.

    None: no number that anybody will score.
    """
    if limit >= 1:
        return max(1, hits)
    if limit <= 0:
        return None

    def shows(n: int) -> bool:
        return share_interval(hits, n)[1] <= limit

    enough = max(1, hits)
    while not shows(enough):
        enough *= 2
        if enough > _MOST_DOCUMENTS:
            return None
    low = enough // 2  # does not show it, or is below the hits
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if middle >= hits and shows(middle) else (middle, enough)
    return enough


def _beta_quantile(p: float, a: float, b: float) -> float:
    """Where the distribution function of Beta(a, b) is `p`, by halving: 60 times, to the last bit or so."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < p else (low, middle)
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz)."""
    if x > (a + 1) / (a + b + 2):  # the fraction is quick on the other side
        return 1 - _beta_cdf(1 - x, b, a)
    if x <= 0:
        return 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            step = c * d
            fraction *= step
        if abs(step - 1) < 1e-14:
            break
    return front * fraction
