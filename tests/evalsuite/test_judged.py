"""The intervals that are judged: exact where they can be, and never collapsed where nothing was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from contract.errors import AssayError
from evalsuite.judged import (
    difference_of_rouge,
    difference_of_shares,
    interval_of_change,
    interval_of_costs,
    interval_of_share,
)


def test_a_loss_that_was_not_seen_may_be_there() -> None:
    same = difference_of_shares([True] * 20, [True] * 20)
    assert (same.mean, same.n) == (0.0, 20)
    assert (same.low, same.high) == pytest.approx((-0.1684, 0.1684), abs=1e-4)
    assert interval_of_share([True] * 20).low == pytest.approx(0.8316, abs=1e-4)
    assert difference_of_rouge([50.0] * 20, [50.0] * 20).low == pytest.approx(-20 * 3.689 / 20, abs=1e-3)
    assert interval_of_costs([0.0] * 20, [30.0] * 20, least_jump=1.0).high == pytest.approx(3.689 / 600, abs=1e-5)
    alike = interval_of_costs([3.0] * 20, [30.0] * 20)
    assert alike.low <= 0.1 < alike.high


def test_where_documents_only_lose_the_difference_is_the_losses_exact_interval() -> None:
    theirs = [True] * 100
    found = difference_of_shares([False] * 3 + [True] * 97, theirs)
    assert found.mean == pytest.approx(-0.03)
    assert found.low == pytest.approx(-0.0852, abs=1e-4)  # Clopper and Pearson's, 3 of 100


def test_a_paired_difference_is_near_newcombes_and_knows_its_direction() -> None:
    # his method 10 of 1998 has score intervals in place of exact ones, so it is a little narrower
    ours = [True] * 14 + [False] * 5 + [True] * 2
    theirs = [True] * 14 + [True] * 5 + [False] * 2
    found, turned = difference_of_shares(ours, theirs), difference_of_shares(theirs, ours)
    assert (found.mean, found.low, found.high) == pytest.approx((-turned.mean, -turned.high, -turned.low))
    wald = 1.96 * math.sqrt(7 - 9 / 21) / 21
    assert found.low < -3 / 21 - wald
    assert found.high > -3 / 21 + wald * 0.9


def test_more_losses_reach_further_and_gains_count() -> None:
    theirs = [True] * 50 + [False] * 50

    def with_lost(lost: int, gained: int = 0) -> float:
        ours = [False] * lost + [True] * (50 - lost) + [True] * gained + [False] * (50 - gained)
        return -difference_of_shares(ours, theirs).low

    reach = [with_lost(lost) for lost in range(10)]
    assert reach == sorted(reach)
    assert with_lost(5, 3) < with_lost(5)
    assert with_lost(5, 3) > with_lost(2), "five lost and three gained is less sure than two lost"


def test_jumps_of_one_size_are_counted_exactly() -> None:
    found = interval_of_costs([1.0] * 3 + [0.0] * 97, [1.0] * 100)
    assert found.mean == pytest.approx(0.03)
    assert found.high > 0.08767  # the exact Poisson bound of 3: 8.767 expected
    assert found.high < 0.11


def test_a_normal_sample_has_the_textbooks_interval() -> None:
    values = np.random.default_rng(1).normal(0.1, 2, 2000)
    found = interval_of_change(list(values), [1.0] * 2000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert found == interval_of_change(list(values), [1.0] * 2000)


def test_long_documents_weigh_more() -> None:
    assert interval_of_costs([10.0, 0.0], [10, 1]).mean == pytest.approx(10 / 11)
    assert interval_of_change([-10.0, 1.0], [10, 1]).mean == pytest.approx(-9 / 11)


def test_a_mean_of_skewed_documents_covers_the_truth() -> None:
    random = np.random.default_rng(3)
    for n in (20, 50):
        samples = random.lognormal(-0.5, 1, (500, n))  # of mean 1
        found = [interval_of_costs(list(sample), [1.0] * n) for sample in samples]
        assert np.mean([interval.high <= 1 for interval in found]) < 0.05
        assert np.mean([interval.low > 1 for interval in found]) < 0.05
        assert all(interval.low < interval.mean < interval.high for interval in found)


def test_one_terrible_document_reaches_up() -> None:
    calm = interval_of_costs([1.0] * 50, [1.0] * 50)
    worse = interval_of_costs([1.0] * 49 + [30.0], [1.0] * 50)
    assert worse.high > 2 * calm.high
    assert worse.low < calm.mean, "one document is no proof of a mean"


@pytest.mark.parametrize(
    "call",
    [
        lambda: interval_of_share([]),
        lambda: difference_of_shares([], []),
        lambda: interval_of_costs([], []),
        lambda: interval_of_change([1.0], []),
        lambda: difference_of_rouge([], []),
    ],
)
def test_without_documents_there_is_no_interval(call) -> None:
    with pytest.raises(AssayError, match="without documents"):
        call()


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(AssayError, match="same documents"):
        difference_of_rouge([1.0], [1.0, 2.0])
    with pytest.raises(AssayError, match="same documents"):
        difference_of_shares([True], [True, False])
