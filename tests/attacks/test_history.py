"""Talking a fail round by later evaluations, by copied or edited verdict files, and by what is served beside them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, Parent, new_artifact, open_artifact
from contract.errors import AssayError
from contract.history import (
    Evaluation,
    History,
    at_least_as_strict,
    begin,
    finish,
    known_history,
    read_verdicts,
    restore,
    standing,
)
from contract.verdict import Above, Outcome, Reason, Verdict, proven, worst
from serve.proof import UnprovenError, refuse_unproven
from tests.kit.verdicts import basis, evaluation, limits, write_begun, write_verdicts

LOOSE = limits(quant={"q4_k_m": {"max_kl_nats": 2.9}})
STRICT = limits(quant={"q4_k_m": {"max_kl_nats": 0.01}})


def make(path: Path, kind: Any = "gguf", above: Artifact | None = None, **details: Any) -> Artifact:
    parents = [] if above is None else [Parent(above.kind, str(above.path), above.digest)]
    with new_artifact(path, kind, "tiny", parents=parents, details=details) as draft:
        (draft.path / f"tiny.{'gguf' if kind == 'gguf' else 'safetensors'}").write_bytes(b"GGUF" + path.name.encode())
    return draft.finished


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make(tmp_path / "q4_k_m", quant="q4_k_m", prompt={"user": "{document}"}, generate={"max_new_tokens": 8})


def verdict(artifact: Artifact, outcome: Outcome, **changes: Any) -> Verdict:
    reasons = (Reason("kl_mean_gold", outcome, "mean KL 0.31 nats"),)
    return replace(Verdict("q4_k_m", artifact.digest, outcome, reasons), **changes)


def say(artifact: Artifact, outcome: Outcome, documents: int = 300, **changes: Any) -> None:
    write_verdicts(artifact.verdict_path, [verdict(artifact, outcome)], on=basis(documents, **changes))


def state(artifact: Artifact) -> str | None:
    counts = standing(known_history(artifact.verdict_path), artifact.digest)
    return counts and counts.state


def refused(artifact: Artifact, verdict_path: Path | None = None) -> str:
    with pytest.raises(UnprovenError) as refusal:
        refuse_unproven(open_artifact(artifact.path), verdict_path)
    assert refusal.value.exit_code == 1
    return str(refusal.value)


@pytest.mark.parametrize(
    "weaker",
    [
        {"documents": 25},
        {"documents": 299},
        {"limits": LOOSE},
        {"limits": {}},
        {"limits": limits(max_eos_rate_loss=0.5)},
        {"limits": limits(merge={"rounding_multiple": 99})},
        {"limits": limits(served={"min_same_text": 0.5})},
        {"generate": {"max_new_tokens": 1, "prompt": None}},
        {"generate": {"max_new_tokens": 64, "prompt": {"user": "{document}"}}},
    ],
)
def test_a_weaker_evaluation_lifts_no_fail(artifact: Artifact, weaker: dict[str, Any]) -> None:
    say(artifact, "fail")
    say(artifact, "pass", **weaker)
    assert state(artifact) == "fail"
    assert "kl_mean_gold (fail)" in refused(artifact)


def test_other_documents_lift_no_fail_however_many(artifact: Artifact) -> None:
    say(artifact, "fail", 20)
    others = tuple(f"{number:032x}" for number in range(1000, 2000))
    write_verdicts(artifact.verdict_path, [verdict(artifact, "pass")], on=basis(1000, documents=others))
    assert state(artifact) == "fail"
    both = (*basis(20).documents, *others)
    write_verdicts(artifact.verdict_path, [verdict(artifact, "pass")], on=basis(1020, documents=both))
    assert state(artifact) == "pass"


def test_another_reference_lifts_no_fail(artifact: Artifact) -> None:
    bad, kind = (Above("merged", digit * 64, "pass") for digit in "12")
    failed = verdict(artifact, "fail", chain=(bad,), compared_with=bad.digest)
    write_verdicts(artifact.verdict_path, [failed])
    write_verdicts(artifact.verdict_path, [verdict(artifact, "pass", chain=(kind,), compared_with=kind.digest)])
    assert state(artifact) == "fail"
    write_verdicts(artifact.verdict_path, [verdict(artifact, "pass", chain=(bad,), compared_with=bad.digest)])
    assert state(artifact) == "pass"


@pytest.mark.parametrize("stronger", [{"documents": 300}, {"documents": 400}, {"limits": STRICT}])
def test_an_evaluation_at_least_as_strong_lifts_a_fail(artifact: Artifact, stronger: dict[str, Any]) -> None:
    say(artifact, "fail")
    say(artifact, "pass", **stronger)
    assert state(artifact) == "pass"
    assert refuse_unproven(open_artifact(artifact.path)).state == "pass"
    assert len(known_history(artifact.verdict_path)) == 2, "both are kept"


def test_a_later_fail_beats_an_earlier_pass_whatever_the_clock_says(artifact: Artifact) -> None:
    say(artifact, "pass", 300, time_utc="2026-12-01T00:00:00+00:00")
    say(artifact, "fail", 25, limits=STRICT, time_utc="1999-01-01T00:00:00+00:00")
    assert state(artifact) == "fail"
    say(artifact, "pass", 300, time_utc="2030-01-01T00:00:00+00:00")
    assert state(artifact) == "fail", "under wider limits than the one that failed"


def test_a_quick_look_takes_no_pass_away_and_a_stricter_one_does(artifact: Artifact) -> None:
    say(artifact, "pass")
    say(artifact, "inconclusive", 25)
    assert state(artifact) == "pass"
    say(artifact, "inconclusive", 300)
    assert state(artifact) == "inconclusive", "the same documents, and they no longer show it"
    say(artifact, "pass", 300)
    say(artifact, "inconclusive", 400)
    assert state(artifact) == "inconclusive"
    say(artifact, "pass", 400, limits=LOOSE)
    assert state(artifact) == "inconclusive"
    assert "inconclusive" in refused(artifact)
    say(artifact, "pass", 400)
    assert state(artifact) == "pass"


def test_what_was_begun_and_not_finished_is_not_served(artifact: Artifact) -> None:
    say(artifact, "pass")
    write_begun(artifact.verdict_path, artifact.digest, on=basis(25))
    assert state(artifact) == "unfinished"
    assert "not finished" in refused(artifact)
    say(artifact, "inconclusive", 25)  # that one, finished
    assert state(artifact) == "pass"
    write_begun(artifact.verdict_path, artifact.digest)
    with pytest.raises(AssayError, match="was not finished"):
        read_verdicts(artifact.verdict_path)


def test_the_same_word_again_is_kept_once_and_an_old_one_put_back_stays_old(artifact: Artifact) -> None:
    say(artifact, "pass")
    old = known_history(artifact.verdict_path)
    say(artifact, "pass", time_utc="2026-02-02T00:00:00+00:00")
    assert len(known_history(artifact.verdict_path)) == 1
    artifact.verdict_path.unlink()
    say(artifact, "fail", 25)
    restore(artifact.verdict_path, old)
    assert state(artifact) == "fail", "what is put back comes before what is there"


def test_a_verdict_beside_another_artifact_says_nothing_of_it(artifact: Artifact, tmp_path: Path) -> None:
    say(artifact, "pass")
    other = make(tmp_path / "other", quant="q4_k_m")
    shutil.copy(artifact.verdict_path, other.verdict_path)
    assert "no verdict is about these bytes" in refused(other)


def test_a_verdict_from_elsewhere_does_not_hide_a_fail_beside_the_artifact(artifact: Artifact, tmp_path: Path) -> None:
    write_verdicts(tmp_path / "eval.json", [verdict(artifact, "pass")])
    assert refuse_unproven(artifact, tmp_path / "eval.json").state == "pass"
    say(artifact, "fail", 25)
    assert "kl_mean_gold (fail)" in refused(artifact, tmp_path / "eval.json")


def test_what_it_was_made_from_failed_later(tmp_path: Path) -> None:
    merged = make(tmp_path / "merged", "merged")
    gguf = make(tmp_path / "gguf", above=merged)
    ollama = make(tmp_path / "ollama", above=gguf)
    for artifact in (merged, gguf, ollama):
        say(artifact, "pass")
    assert refuse_unproven(ollama).state == "pass"
    say(merged, "fail", 25)
    for artifact in (gguf, ollama):
        assert "it was made from tiny, and that did not pass" in refused(artifact)


def test_a_pass_that_hangs_from_something_else_than_passes_is_none(artifact: Artifact) -> None:
    hung = verdict(artifact, "pass", chain=(Above("merged", "1" * 64, "inconclusive"),))
    write_verdicts(artifact.verdict_path, [hung])
    assert "did not pass" in refused(artifact)


def _edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["evaluations"][0]["verdicts"][0].update(outcome="passed"),
        lambda data: data["evaluations"][0]["verdicts"][0].update(outcome=None),
        lambda data: data["evaluations"][0]["verdicts"][0].pop("outcome"),
        lambda data: data["evaluations"][0]["verdicts"][0].update(trusted=True),
        lambda data: data["evaluations"][0]["verdicts"][0].update(digest="9" * 64),
        lambda data: data["evaluations"][0].update(finished="yes"),
        lambda data: data["evaluations"][0].update(finished=False),
        lambda data: data["evaluations"][0]["basis"].update(documents=300),
        lambda data: data.update(evaluations={}),
        lambda data: data.update(schema=3),
    ],
)
def test_a_verdict_file_with_unknown_values_is_refused_not_read_as_a_pass(artifact: Artifact, change: Any) -> None:
    say(artifact, "pass")
    _edit(artifact.verdict_path, change)
    with pytest.raises(AssayError) as refusal:
        refuse_unproven(open_artifact(artifact.path))
    assert refusal.value.exit_code == 2


def test_a_verdict_file_set_back_to_the_first_version_proves_nothing(artifact: Artifact) -> None:
    old = {"schema": 1, "verdicts": [asdict(verdict(artifact, "pass"))]}
    artifact.verdict_path.write_text(json.dumps(old))
    assert "an earlier version" in refused(artifact)


def test_nothing_judged_proves_nothing() -> None:
    passed = Verdict("q4_k_m", "1" * 64, "pass", ())
    assert worst([]) == "inconclusive"
    assert not proven([], [])
    assert not proven([], ["q4_k_m"])
    assert not proven([passed], [])
    assert proven([passed], ["q4_k_m"])
    assert not proven([passed, replace(passed, label="q4_k_m-2", outcome="fail")], ["q4_k_m"])
    assert proven([passed, replace(passed, label="q8_0", outcome="fail")], ["q4_k_m"])


@pytest.mark.parametrize(
    ("ours", "others", "strict"),
    [
        ({"max_x": 1.0}, {"max_x": 1.0}, True),
        ({"max_x": 1.1}, {"max_x": 1.0}, False),
        ({"min_x": 0.9}, {"min_x": 0.8}, True),
        ({"min_x": 0.7}, {"min_x": 0.8}, False),
        ({}, {"max_x": 1.0}, False),
        ({"max_x": 1.0, "max_y": 9.0}, {"max_x": 1.0}, True),
        ({"a": {"max_x": 2.0}}, {"a": {"max_x": 1.0}}, False),
        ({"a": 0.0}, {"a": {"max_x": 1.0}}, False),
        ({"allow_x": True}, {"allow_x": False}, False),
        ({"allow_x": False}, {"allow_x": True}, True),
        ({"max_x": True}, {"max_x": 5.0}, False),
        ({"odd": 1.0}, {"odd": 2.0}, False),
    ],
)
def test_limits_are_compared_field_by_field(ours: dict[str, Any], others: dict[str, Any], strict: bool) -> None:
    assert at_least_as_strict(ours, others) is strict


def test_every_limit_of_a_recipe_has_a_direction() -> None:
    """A field that the rule does not know must be equal: a new limit would silently freeze every history."""

    def unknown(values: dict[str, Any]) -> list[str]:
        found = []
        for name, value in values.items():
            if isinstance(value, dict):
                found += unknown(value)
            elif not name.startswith(("max_", "min_", "allow_")) and name != "rounding_multiple":
                found.append(name)
        return found

    assert unknown(limits()) == []


def test_two_that_write_at_the_same_time_lose_nothing(artifact: Artifact) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: say(artifact, "inconclusive", n), range(1, 25)))
    history: History = known_history(artifact.verdict_path)
    assert sorted(len(each.basis.documents) for each in history) == list(range(1, 25))


def test_one_artifact_twice_in_an_evaluation_is_judged_by_the_worse(artifact: Artifact) -> None:
    both = evaluation(verdict(artifact, "pass"), verdict(artifact, "fail", label="again"))
    counts = standing([both], artifact.digest)
    assert counts is not None
    assert counts.state == "fail"
    silent = Evaluation(basis(), (artifact.digest,), (), finished=True)
    counts = standing([silent], artifact.digest)
    assert counts is not None
    assert counts.state == "inconclusive"


def test_a_verdict_from_elsewhere_does_not_hide_an_inconclusive_beside_the_artifact(
    artifact: Artifact, tmp_path: Path
) -> None:
    write_verdicts(tmp_path / "eval.json", [verdict(artifact, "pass")], on=basis(25))
    say(artifact, "pass", 25)
    say(artifact, "inconclusive", 400)
    assert "inconclusive" in refused(artifact, tmp_path / "eval.json")


def test_what_it_was_made_from_has_lost_its_pass(tmp_path: Path) -> None:
    merged = make(tmp_path / "merged", "merged")
    gguf = make(tmp_path / "gguf", above=merged)
    for one in (merged, gguf):
        say(one, "pass")
    say(merged, "inconclusive", 400)
    assert "it was made from tiny, and that did not pass" in refused(gguf)


def test_a_quick_look_does_no_harm_to_any_pass_that_covers_it(artifact: Artifact) -> None:
    say(artifact, "pass", 300)
    say(artifact, "pass", 25)
    say(artifact, "inconclusive", 30)
    counts = refuse_unproven(open_artifact(artifact.path))
    assert [len(each.basis.documents) for each in counts.passes] == [300, 25]


@pytest.mark.parametrize("other", [{"generate": {"max_new_tokens": 1, "prompt": None}}, {"limits": LOOSE}])
def test_an_inconclusive_is_not_lifted_by_what_measures_less(artifact: Artifact, other: dict[str, Any]) -> None:
    say(artifact, "inconclusive", 100)
    say(artifact, "pass", 300, **other)
    assert state(artifact) == "inconclusive"


def test_what_was_begun_against_one_model_is_not_ended_against_another(artifact: Artifact) -> None:
    begun = Evaluation(basis(), (artifact.digest,), above={artifact.digest: ("1" * 64,)})
    begin(artifact.verdict_path, begun)
    kind = Above("merged", "2" * 64, "pass")
    passed = evaluation(verdict(artifact, "pass", chain=(kind,), compared_with=kind.digest))
    finish(artifact.verdict_path, replace(passed, above={artifact.digest: (kind.digest,)}))
    assert state(artifact) == "unfinished"
    same = Above("merged", "1" * 64, "pass")
    passed = evaluation(verdict(artifact, "pass", chain=(same,), compared_with=same.digest))
    finish(artifact.verdict_path, replace(passed, above={artifact.digest: (same.digest,)}))
    assert state(artifact) == "pass"


def test_moving_a_run_washes_nothing(tmp_path: Path) -> None:
    merged = make(tmp_path / "run" / "merged", "merged")
    gguf = make(tmp_path / "run" / "gguf" / "q4_k_m", above=merged)
    ollama = make(tmp_path / "run" / "ollama", above=gguf)
    for one in (merged, gguf, ollama):
        say(one, "pass")
    say(merged, "fail", 25)
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("gguf/q4_k_m", "ollama"):
        assert "it was made from tiny, and that did not pass" in refused(open_artifact(tmp_path / "moved" / name))
