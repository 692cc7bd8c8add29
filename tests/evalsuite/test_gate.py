from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.limits import GatePart
from contract.verdict import Verdict, proven
from evalsuite.gate import judge
from evalsuite.results import Comparison, DataInfo, Distance, PathNoise, ServedPath
from tests.evalsuite.made import comparison, distance, interval, merge_comparison, results, row, served_path

GATE = GatePart()


def _verdict(label: str, *comparisons: Comparison, gate: GatePart = GATE, **changes: Any) -> Verdict:
    above = (row("adapter"), *([row("merged", merge_comparison())] if label != "merged" else []))
    lost = changes.pop("lost", None)
    verdicts = judge(results(*above, row(label, *comparisons, lost=lost), **changes), gate)
    return next(verdict for verdict in verdicts if verdict.label == label)


def _not_passed(verdict: Verdict) -> dict[str, str]:
    return {reason.code: reason.outcome for reason in verdict.reasons if reason.outcome != "pass"}


def test_what_is_within_its_limits_passes_and_references_are_not_judged() -> None:
    verdicts = judge(results(), GATE)
    assert [(verdict.label, verdict.outcome) for verdict in verdicts] == [("merged", "pass"), ("q4_k_m", "pass")]
    assert verdicts[1].compared_with == "merged" * 8
    assert {
        "prompt_ids_differ",
        "double_bos",
        "stop_ids_differ",
        "kl_mean_gold",
        "kl_mean_greedy",
        "top1_gold",
        "top1_greedy",
        "ruined_documents",
        "perplexity_ratio",
        "rouge_l_loss",
        "eos_rate_loss",
        "served_path",
        "documents_too_long",
    } == {r.code for r in verdicts[1].reasons}
    assert proven(verdicts, ["merged", "q4_k_m"])
    assert not proven(verdicts, ["merged", "q8_0"]), "what was not judged has not passed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt_ids_differ": 1, "prompt_difference": "at token 3"}, "prompt_ids_differ"),
        ({"double_bos": 120}, "double_bos"),
        ({"stop_ids_missing": (4,)}, "stop_ids_differ"),
        ({"stop_ids_extra": (7,), "stop_ids_extra_used": 2}, "stop_ids_differ"),
        ({"distances": (), "not_finite_tokens": 3}, "not_finite"),
        ({"distances": (), "vocabulary": (512, 511)}, "vocabulary_differs"),
        ({"distances": (distance("gold", 0.2), distance("greedy"))}, "kl_mean_gold"),
        ({"distances": (distance("gold"), distance("greedy", 0.2))}, "kl_mean_greedy"),
        ({"distances": (distance("gold", top1=interval(0.8, 0.01)), distance("greedy"))}, "top1_gold"),
        ({"distances": (distance("gold"), distance("greedy", top1=interval(0.8, 0.01)))}, "top1_greedy"),
        (
            {"distances": (distance("gold", perplexity_ratio=interval(1.2, 0.01)), distance("greedy"))},
            "perplexity_ratio",
        ),
        (
            {"distances": (distance("gold", kl_by_document=(0.001,) * 97 + (4.0,) * 3), distance("greedy"))},
            "ruined_documents",
        ),
        ({"rouge_l_difference": interval(-4, 1)}, "rouge_l_loss"),
        ({"eos_rate_difference": interval(-0.3, 0.1)}, "eos_rate_loss"),
    ],
)
def test_each_check_fails_by_itself(change: dict[str, Any], code: str) -> None:
    verdict = _verdict("q4_k_m", comparison(**change))
    assert _not_passed(verdict) == {code: "fail"}
    assert verdict.outcome == "fail"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"distances": (distance("gold", 0.079, 0.02), distance("greedy"))}, "kl_mean_gold"),
        ({"distances": (distance("gold", top1=interval(0.921, 0.01)), distance("greedy"))}, "top1_gold"),
        ({"rouge_l_difference": interval(-1.5, 1)}, "rouge_l_loss"),
        ({"eos_rate_difference": interval(-0.04, 0.04)}, "eos_rate_loss"),
    ],
)
def test_an_interval_across_the_limit_is_inconclusive_and_says_how_many_documents_would_do(
    change: dict[str, Any], code: str
) -> None:
    verdict = _verdict("q4_k_m", comparison(**change))
    assert _not_passed(verdict) == {code: "inconclusive"}
    [reason] = [reason for reason in verdict.reasons if reason.code == code]
    assert "documents would decide" in reason.text


def test_figures_of_serving_are_judged_where_they_are_others() -> None:
    near, far = distance("gold", 0.01), distance("gold", 0.2)

    def path(served: Distance, many: Distance, *whole: Distance, kl: float = 0.0) -> ServedPath:
        same = PathNoise("greedy", distance("greedy"), distance("greedy"), 0.0, 0.0)
        return ServedPath(32, 0, (PathNoise("gold", served, many, kl, 0.5, 1e-13), same), whole)

    def verdict(many: Distance, served_path: ServedPath | None) -> Verdict:
        return _verdict("q4_k_m", comparison(distances=(many, distance("greedy")), served_path=served_path))

    assert _not_passed(verdict(near, path(far, near))) == {"kl_mean_gold": "fail"}
    assert _not_passed(verdict(near, path(near, near, far, kl=1e-3))) == {"kl_mean_gold": "fail"}
    passed = verdict(far, path(near, far, near))
    [reason] = [reason for reason in passed.reasons if reason.code == "kl_mean_gold"]
    assert (passed.outcome, reason.value) == ("pass", 0.01)
    assert "as it is served, one text at a time (0.2 many at once)" in reason.text
    assert _not_passed(verdict(far, path(far, far))) == {"kl_mean_gold": "fail"}
    [told] = [reason for reason in passed.reasons if reason.code == "served_path"]
    assert "the reference's own noise is 1e-13 nats; 0 of the texts differ" in told.text
    silent = verdict(near, served_path())
    [told] = [reason for reason in silent.reasons if reason.code == "served_path"]
    assert "own noise was not measured" in told.text


def test_what_was_not_run_the_way_it_is_served_does_not_pass() -> None:
    assert _not_passed(_verdict("q4_k_m", comparison(served_path=None))) == {"served_path": "inconclusive"}
    bare = served_path(noise=())
    assert _not_passed(_verdict("q4_k_m", comparison(served_path=bare))) == {"served_path": "inconclusive"}
    ruined = served_path(noise=(), not_finite_tokens=3)
    assert _not_passed(_verdict("q4_k_m", comparison(served_path=ruined))) == {"not_finite": "fail"}


@pytest.mark.parametrize(("left_out", "outcome"), [(0, "pass"), (100, "pass"), (101, "inconclusive")])
def test_documents_that_are_too_long_are_said_and_more_than_half_are_too_many(left_out: int, outcome: str) -> None:
    data = DataInfo("ab" * 32, 100, tuple(map(str, range(left_out))), 20.0, 200.0)
    verdict = _verdict("q4_k_m", comparison(), data=data)
    [reason] = [reason for reason in verdict.reasons if reason.code == "documents_too_long"]
    assert (verdict.outcome, reason.outcome, reason.value, reason.n) == (outcome, outcome, left_out, 100 + left_out)
    said = f"100 of {100 + left_out} documents were judged" if left_out else "all 100 documents can be served"
    assert said in reason.text


def test_stop_ids_that_are_never_met_do_no_harm() -> None:
    assert _verdict("q4_k_m", comparison(stop_ids_extra=(9,))).outcome == "pass"


def test_too_few_documents_never_pass() -> None:
    data = DataInfo("ab" * 32, 19, (), 20.0, 200.0)
    assert _not_passed(_verdict("merged", merge_comparison(), data=data)) == {"too_few_documents": "inconclusive"}


def test_a_merge_is_held_against_what_rounding_costs() -> None:
    assert _verdict("merged", merge_comparison(3.9e-7)).outcome == "pass"
    verdict = _verdict("merged", merge_comparison(4.2e-7))
    assert _not_passed(verdict) == {"merge_kl_gold": "fail", "merge_kl_greedy": "fail"}
    wider = GatePart.model_validate({"merge": {"rounding_multiple": 5}})
    assert _verdict("merged", merge_comparison(4.2e-7), gate=wider).outcome == "pass"


def test_a_ruined_document_is_seen_in_a_merge_and_in_a_base_change() -> None:
    many = (1e-8,) * 97 + (1e-3,) * 3
    found = merge_comparison(1e-7, distances=(distance("gold", 1e-7, kl_by_document=many), distance("greedy", 1e-7)))
    assert _not_passed(_verdict("merged", found)) == {"merge_ruined_documents": "fail"}
    change = comparison(
        "base_change",
        "adapter",
        distances=(distance("gold", kl_by_document=(0.01,) * 97 + (9.0,) * 3), distance("greedy")),
    )
    assert _not_passed(_verdict("merged", merge_comparison(), change)) == {"base_change_ruined_documents": "fail"}


def test_base_change_has_limits_of_its_own() -> None:
    change = comparison(
        "base_change",
        "adapter",
        distances=(distance("gold", 0.3), distance("greedy", 0.2)),
        rouge_l_difference=interval(-9, 1),
        prompt_ids_differ=5,
    )
    assert _not_passed(_verdict("merged", merge_comparison(), change)) == {
        "base_change_kl_gold": "fail",
        "base_change_rouge_l_loss": "fail",
    }


def test_without_reference_or_limits_nothing_passes() -> None:
    assert _not_passed(_verdict("q4_k_m")) == {"no_reference": "inconclusive"}
    rows = row("adapter"), row("merged", merge_comparison()), replace(row("q4_k_m", comparison()), quant="tq1_0")
    assert _not_passed(judge(results(*rows), GATE)[-1]) == {"no_limits": "inconclusive"}


def test_what_was_compared_with_a_bad_merge_does_not_pass() -> None:
    bad = row("merged", merge_comparison(1e-3))
    merged, q4 = judge(results(row("adapter"), bad, row("q4_k_m", comparison("quantization", "merged"))), GATE)
    assert merged.outcome == "fail"
    assert _not_passed(q4) == {"reference_not_passed": "fail"}
    assert q4.outcome == "fail"


def test_a_merge_without_measured_noise_is_not_judged() -> None:
    [verdict] = judge(results(row("adapter"), row("merged", replace(merge_comparison(), noise=()))), GATE)
    assert _not_passed(verdict) == {"no_limits": "inconclusive"}


@pytest.mark.parametrize(
    "change",
    [
        {"distances": ()},
        {"distances": (distance("gold"),)},
        {"rouge_l_difference": None},
        {"eos_rate_difference": None},
        {"prompts": 0},
    ],
)
def test_what_was_not_measured_has_not_passed(change: dict[str, Any]) -> None:
    assert _not_passed(_verdict("q4_k_m", comparison(**change))) == {"not_measured": "inconclusive"}


def test_a_reference_that_is_no_row_was_judged_by_nobody() -> None:
    [verdict] = judge(results(row("q4_k_m", comparison())), GATE)
    assert _not_passed(verdict) == {"reference_not_passed": "inconclusive"}


def test_what_was_made_from_something_that_is_gone_does_not_pass_on_another_comparison() -> None:
    verdict = _verdict("q4_k_m", comparison(), lost="the merged model of digest 123")
    assert _not_passed(verdict) == {"lineage_not_found": "inconclusive"}


def test_a_chain_says_all_that_it_hangs_from() -> None:
    chain = judge(results(), GATE)[1].chain
    assert [(above.label, above.outcome) for above in chain] == [("merged", "pass"), ("adapter", None)]
