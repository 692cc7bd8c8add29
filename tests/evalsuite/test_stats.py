from __future__ import annotations

import numpy as np
import pytest

from contract.errors import AssayError
from evalsuite.results import Interval
from evalsuite.stats import (
    at_least,
    at_most,
    documents_needed,
    interval_of_mean,
    interval_of_ratio,
    non_inferior,
)


def test_the_interval_is_the_textbooks() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = interval_of_mean(list(values))
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == interval_of_mean(list(values)), "seeded"


def test_long_documents_weigh_more() -> None:
    assert interval_of_ratio([10.0, 0.0], [10, 1]).mean == pytest.approx(10 / 11)
    with pytest.raises(AssayError, match="without documents"):
        interval_of_mean([])


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.1, 0.2, "pass"), (0.25, 0.3, "inconclusive"), (0.3, 1, "fail")]
)
def test_at_most(low: float, high: float, outcome: str) -> None:
    assert at_most(Interval((low + high) / 2, low, high, 50), 0.27) == outcome
    assert at_least(Interval(-(low + high) / 2, -high, -low, 50), -0.27) == outcome
    assert non_inferior(Interval(-(low + high) / 2, -high, -low, 50), 0.27) == outcome


def test_documents_needed_is_what_would_decide() -> None:
    wide = Interval(-0.5, -2.5, 1.5, 50)  # half-width 2, the margin of 1 is 0.5 away: 16 times as many
    assert documents_needed(wide, -1.0) == 800
    assert documents_needed(Interval(-1.0, -2.0, 0.0, 50), -1.0) is None


def test_where_nothing_was_seen_what_may_be_there_shrinks_with_the_documents() -> None:
    assert documents_needed(Interval(0.0, -4.0, 4.0, 20), 1.0) == 80
