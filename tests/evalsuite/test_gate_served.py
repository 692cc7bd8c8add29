"""The gate on an endpoint's figures: each check says no by itself, for its own reason."""

from __future__ import annotations

from typing import Any

import pytest

from contract.limits import GatePart
from contract.verdict import Verdict
from evalsuite.gate import judge, required
from evalsuite.results import Comparison, Row, Served
from tests.evalsuite.made import comparison, interval, merge_comparison, results, row

GATE = GatePart()


def served(**changes: Any) -> Served:
    values: dict[str, Any] = {
        "digest": "q4_k_m" * 8,
        "same_text": interval(0.98, 0.01),
        "text_difference": "document a, at character 1",
        "divergence_characters": 40.0,
        "divergence_words": 6.0,
        "same_stop": interval(0.99, 0.01),
        "stops_unreported": 0,
        "counts_unreported": 0,
        "offset": 0,
        "truncated": 0,
        "truncation": None,
        "control_text_tokens": 0,
        "completion_tokens_differ": 0,
    }
    return Served(**{**values, **changes})


def serving(told: Served, **changes: Any) -> Comparison:
    values = {"distances": (), "rouge_l_difference": interval(0.0, 0.2), **changes}
    return comparison("serving", "q4_k_m", served=told, **values)


def endpoint(told: Served, **changes: Any) -> Row:
    return row("served", serving(told, **changes), kind="endpoint", quant=None, size_bytes=0, speed=None)


def verdict_on(told: Served, gate: GatePart = GATE, **changes: Any) -> Verdict:
    rows = row("adapter"), row("merged", merge_comparison()), row("q4_k_m", comparison()), endpoint(told, **changes)
    return judge(results(*rows), gate)[-1]


def not_passed(verdict: Verdict) -> dict[str, str]:
    return {reason.code: reason.outcome for reason in verdict.reasons if reason.outcome != "pass"}


def test_within_its_limits_an_endpoint_passes() -> None:
    verdict = verdict_on(served())
    assert verdict.outcome == "pass"
    assert {reason.code for reason in verdict.reasons} == {
        "served_digest_differs",
        "served_prompt_tokens_differ",
        "served_truncated",
        "served_control_text",
        "served_text_differs",
        "served_stop_differs",
        "served_rouge_l_loss",
        "eos_rate_loss",
        "documents_too_long",
    }
    assert verdict_on(served(digest=None, control_text_tokens=None)).outcome == "pass", "not every server tells these"
    assert verdict_on(served(control_text_tokens=-9)).outcome == "pass"


@pytest.mark.parametrize(
    ("told", "changes", "code", "outcome"),
    [
        ({"digest": "other"}, {}, "served_digest_differs", "inconclusive"),
        ({}, {"prompt_ids_differ": 3, "prompt_difference": "document a"}, "served_prompt_tokens_differ", "fail"),
        ({"truncated": 1, "truncation": "document a"}, {}, "served_truncated", "fail"),
        ({"same_text": interval(0.7, 0.05)}, {}, "served_text_differs", "fail"),
        ({"same_text": interval(0.9, 0.05)}, {}, "served_text_differs", "inconclusive"),
        ({"same_stop": interval(0.1, 0.05)}, {}, "served_stop_differs", "fail"),
        (
            {"same_stop": None, "stops_unreported": 4},
            {"eos_rate_difference": None},
            "served_stop_differs",
            "inconclusive",
        ),
        ({}, {"rouge_l_difference": interval(-4, 1)}, "served_rouge_l_loss", "fail"),
        ({}, {"eos_rate_difference": interval(-0.3, 0.1)}, "eos_rate_loss", "fail"),
    ],
)
def test_each_check_says_no_by_itself(told: dict[str, Any], changes: dict[str, Any], code: str, outcome: str) -> None:
    verdict = verdict_on(served(**told), **changes)
    assert not_passed(verdict) == {code: outcome}
    assert verdict.outcome == outcome


def test_what_was_not_reported_never_passes_but_what_was_found_still_fails() -> None:
    silent = not_passed(verdict_on(served(counts_unreported=5)))
    assert silent == {"served_prompt_tokens_differ": "inconclusive", "served_truncated": "inconclusive"}
    found = not_passed(verdict_on(served(counts_unreported=5), prompt_ids_differ=2))
    assert found == {"served_prompt_tokens_differ": "fail", "served_truncated": "inconclusive"}


def test_the_recipe_decides_on_control_text_and_on_limits() -> None:
    strict = GatePart.model_validate({"served": {"allow_control_text": False, "min_same_text": 0.995}})
    assert not_passed(verdict_on(served(control_text_tokens=-9), strict)) == {
        "served_control_text": "fail",
        "served_text_differs": "fail",
        "served_stop_differs": "inconclusive",
    }
    assert not_passed(verdict_on(served(control_text_tokens=None), strict))["served_control_text"] == "inconclusive"


def test_the_offset_is_put_into_words() -> None:
    for offset, says in ((1, "BOS twice"), (-1, "BOS missing"), (7, "system turn"), (-40, "cached"), (0, "tokenizer")):
        verdict = verdict_on(served(offset=offset), prompt_ids_differ=120, prompt_difference="document a has 9, not 8")
        [reason] = [reason for reason in verdict.reasons if reason.code == "served_prompt_tokens_differ"]
        assert says in reason.text


def test_texts_that_differ_for_no_reason_the_prompts_give() -> None:
    for changes, says in (({}, True), ({"prompt_ids_differ": 1}, False)):
        verdict = verdict_on(served(same_text=interval(0.2, 0.1)), **changes)
        [reason] = [reason for reason in verdict.reasons if reason.code == "served_text_differs"]
        assert ("repeat penalty" in reason.text) is says


def test_an_endpoint_is_as_good_as_what_it_serves_and_must_pass() -> None:
    bad = row("q4_k_m", comparison("quantization", "merged", double_bos=3))
    rows = (bad, endpoint(served()))
    last = judge(results(*rows), GATE)[-1]
    assert not_passed(last) == {"reference_not_passed": "fail"}
    assert required(rows, GATE) == ("q4_k_m", "served"), "what was not made here is not asked for"
    assert required((bad,), GATE) == ("merged", "q4_k_m")
