from __future__ import annotations

import math

import pytest

from contract.shares import documents_for_share, share_interval, unseen_share


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 20, 0.0, 1 - 0.025 ** (1 / 20)),  # 0.168
        (20, 20, 0.025 ** (1 / 20), 1.0),
        (0, 72, 0.0, 0.04994),
        (81, 263, 0.2527, 0.3676),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (15, 148, 0.0578, 0.1617),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_intervals_are_the_published_ones(hits: int, n: int, low: float, high: float) -> None:
    assert share_interval(hits, n) == pytest.approx((low, high), abs=6e-5)


def test_each_end_is_where_what_was_seen_has_a_probability_of_one_in_forty() -> None:
    def at_most(hits: int, n: int, share: float) -> float:
        return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits + 1))

    for hits, n in ((1, 20), (3, 50), (49, 50), (150, 300)):
        low, high = share_interval(hits, n)
        assert at_most(hits, n, high) == pytest.approx(0.025)
        assert 1 - at_most(hits - 1, n, low) == pytest.approx(0.025)


def test_more_hits_and_fewer_documents_leave_more_open() -> None:
    highs = [share_interval(hits, 50)[1] for hits in range(51)]
    assert highs == sorted(highs)
    assert share_interval(5000, 10_000)[1] - share_interval(5000, 10_000)[0] == pytest.approx(0.0196, abs=2e-4)
    unseen = [unseen_share(n) for n in (20, 50, 100, 300, 1000)]
    assert unseen == sorted(unseen, reverse=True)
    for hits, n in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="is no share"):
            share_interval(hits, n)


@pytest.mark.parametrize(("limit", "hits", "n"), [(0.05, 0, 72), (0.05, 1, 110), (0.05, 2, 142), (0.003, 1, 1855)])
def test_the_least_number_of_documents_is_the_least(limit: float, hits: int, n: int) -> None:
    assert documents_for_share(limit, hits) == n
    assert share_interval(hits, n)[1] <= limit < share_interval(hits, n - 1)[1]


def test_where_no_number_is_enough_none_is_named() -> None:
    assert documents_for_share(0.0) is None
    assert documents_for_share(1e-9) is None
    assert documents_for_share(1.0, 3) == 3
