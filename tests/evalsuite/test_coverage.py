"""The table of how often the gate is wrong, with few simulations: the whole one is `make bench-coverage`."""

from __future__ import annotations

import pytest

from benchmarks.coverage import AT_LIMIT, ENOUGH, HARDER, QUARTER, best_of_eos, shares, with_ruined


@pytest.mark.parametrize("name", AT_LIMIT)
@pytest.mark.parametrize("n", [20, 100])
def test_at_the_limit_few_pass_and_few_fail(name: str, n: int) -> None:
    passed, failed = shares(AT_LIMIT[name], n, 300, seed=1)
    assert passed <= 0.06, "3.5% of 300 and chance"
    assert failed <= 0.06


@pytest.mark.parametrize("name", QUARTER)
def test_well_within_the_limit_nearly_all_pass(name: str) -> None:
    passed, failed = shares(QUARTER[name], ENOUGH, 200, seed=1)
    assert passed >= 0.9
    assert failed == 0


@pytest.mark.parametrize("n", [20, 50])
def test_ruined_documents_are_missed_only_where_none_was_drawn(n: int) -> None:
    passed, _ = shares(with_ruined(0.03, 60, 0.1), n, 2000, seed=2)
    assert passed == pytest.approx(0.97**n, abs=0.035)


def test_a_quarter_of_the_eos_limit_needs_more_documents_than_any_test_could_do_with() -> None:
    assert best_of_eos(ENOUGH) == pytest.approx(0.674, abs=0.001)
    assert best_of_eos(300) > 0.98
    assert 0.4 < shares(HARDER["EOS"], ENOUGH, 500, seed=1)[0] < best_of_eos(ENOUGH)
    assert shares(HARDER["EOS"], 300, 500, seed=1)[0] > 0.9
