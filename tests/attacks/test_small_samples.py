"""A test set that is too small to show anything does not pass, however good everything in it looks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.limits import GatePart
from contract.verdict import Verdict
from evalsuite.gate import judge
from evalsuite.judged import difference_of_rouge, difference_of_shares, interval_of_costs
from evalsuite.results import Comparison, DataInfo, Distance, Interval
from evalsuite.stats import interval_of_ratio
from tests.evalsuite.made import comparison, distance, merge_comparison, results, row

LIMIT = GatePart().quant["q4_k_m"].max_kl_nats


def measured(n: int, kl_nats: list[float] | None = None) -> tuple[Distance, Distance]:
    """What measuring finds of n documents of 30 tokens; without KL the logits are the same, bit by bit."""
    kl = kl_nats or [0.0] * n
    other = interval_of_costs([0.0] * n, [30.0] * n, least_jump=1.0)
    found = replace(
        distance(documents=n, kl_by_document=tuple(kl), top1=Interval(1.0, 1 - other.high, 1.0, n)),
        kl=interval_of_costs([30 * value for value in kl], [30.0] * n),
    )
    return found, replace(found, target_set="greedy")


def perfect(n: int, ended: int | None = None) -> Comparison:
    """Nothing was lost in n documents, but for those that did not end."""
    ends = [True] * (n if ended is None else ended)
    return comparison(
        distances=measured(n),
        rouge_l_difference=difference_of_rouge([50.0] * n, [50.0] * n),
        eos_rate_difference=difference_of_shares(ends + [False] * (n - len(ends)), [True] * n),
    )


def verdict(n: int, found: Comparison) -> Verdict:
    rows = row("adapter"), row("merged", merge_comparison()), row("q4_k_m", found)
    return judge(results(*rows, data=DataInfo("ab" * 32, n, (), 22.0, 180.0)), GatePart())[-1]


@pytest.mark.parametrize("n", [20, 25, 50, 71])
def test_too_few_documents_without_a_loss_show_nothing(n: int) -> None:
    said = verdict(n, perfect(n))
    assert said.outcome == "inconclusive"
    [reason] = [reason for reason in said.reasons if reason.code == "eos_rate_loss"]
    assert reason.outcome == "inconclusive"
    assert reason.high == pytest.approx(1 - 0.025 ** (1 / n))
    assert "72 documents would decide" in reason.text


def test_as_many_as_the_limit_needs_pass() -> None:
    assert verdict(72, perfect(72)).outcome == "pass"


def test_one_that_does_not_end_asks_for_more_documents() -> None:
    said = verdict(72, perfect(72, ended=71))
    [reason] = [reason for reason in said.reasons if reason.outcome != "pass"]
    assert (reason.code, reason.outcome) == ("eos_rate_loss", "inconclusive")
    assert "110 documents would decide, were no more than 1 of them at fault" in reason.text


def test_a_mean_within_its_limit_does_not_cover_for_ruined_documents() -> None:
    kl = [0.002] * 97 + [2.0] * 3  # a mean of 0.062 nats, with a limit of 0.08
    said = verdict(100, replace(perfect(100), distances=measured(100, kl)))
    assert said.outcome == "fail"
    [reason] = [reason for reason in said.reasons if reason.outcome == "fail"]
    assert reason.code == "ruined_documents"
    assert "3 of 100 documents are ruined" in reason.text


def test_figures_of_fewer_documents_than_were_scored_do_not_count() -> None:
    """An edited metrics.json whose ruined documents were taken off the list."""
    cut = tuple(replace(found, kl_by_document=found.kl_by_document[:97]) for found in measured(100))
    said = verdict(100, replace(perfect(100), distances=cut))
    assert {reason.code: reason.outcome for reason in said.reasons if reason.outcome != "pass"} == {
        "ruined_documents": "inconclusive"
    }


def test_a_skewed_mean_whose_percentiles_lie_within_the_limit_does_not_pass() -> None:
    """Twenty documents, most of the KL in four of them: a bootstrap draws nothing worse than these four."""
    kl = [LIMIT / 4] * 16 + [LIMIT * 2] * 4
    assert interval_of_ratio(kl, [1.0] * 20).high < LIMIT
    said = verdict(100, replace(perfect(100), distances=measured(20, kl)))
    assert {reason.code: reason.outcome for reason in said.reasons if reason.outcome != "pass"} == {
        "kl_mean_gold": "inconclusive",
        "kl_mean_greedy": "inconclusive",
    }
