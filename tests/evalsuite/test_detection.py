"""Detection: every damage of the catalogue is refused for its own reason, every harmless change passes outright.

The limits are the recipe's defaults. The models have learned their task (tests/kit/trained.py), so that there is
something to lose; `inconclusive` counts neither as refused nor as passed.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import evalsuite.gate
import evalsuite.walk
from contract.artifact import Artifact
from contract.example import Example
from contract.history import read_verdicts
from contract.limits import Quant
from contract.recipe import Recipe
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.evalsuite.bin_edges import base_at_bin_edges
from tests.evalsuite.chain import Chain, make_adapter_artifact, remake, trained_chain
from tests.evalsuite.damages import DAMAGES, DOSED, FOLLOWS
from tests.evalsuite.harmless import HARMLESS, OTHER_WAYS
from tests.evalsuite.quick import figures_only
from tests.evalsuite.task_damages import TASK_DAMAGES
from tests.kit.dialogues import ENOUGH, dialogues
from tests.kit.trained import Trained
from tests.said import say_at_the_end

pytestmark = pytest.mark.engine

FIRST = 11  # gets everything; two more, trained from other random weights, are slow and get all but the doses
SEEDS = (FIRST, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (12, 13)))
ENOUGH_FOR_F32 = 400  # nearly every first choice must be the same, which fewer documents do not show
RECIPE = Recipe.model_validate(
    {"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": 16}, "gate": {"require": ["merged"]}}
)
MORE_QUANTS: list[Quant] = ["bf16", "q3_k_m", "q2_k"]
EVERY_DAMAGE = (*DAMAGES, *TASK_DAMAGES)
BASE_CHANGE = frozenset(
    {
        "base_change_kl_gold",
        "base_change_kl_greedy",
        "base_change_top1_gold",
        "base_change_top1_greedy",
        "base_change_rouge_l_loss",
    }
)
RUINED = frozenset({"ruined_documents", "merge_ruined_documents", "base_change_ruined_documents"})
OF_A_BAD_MERGE, BAD_BASE = "q8_0 made of a damaged merge", "merged onto a base that is good as NF4 alone"
# codes that no damage to a file of one chain can bring about, and where each is seen to say no instead
ELSEWHERE = {
    "too_few_documents": "test_gate.py: of the data",
    "no_limits": "test_gate.py: of the recipe",
    "not_measured": "test_gate.py, test_ruined.py: of figures that are missing",
    "no_reference": "test_evaluate.py: of what was asked",
    "lineage_not_found": "attacks/test_narrower_evaluation.py: of what is not here any more",
    "documents_too_long": "test_served_path.py: of the data",
    "served_path": "attacks/test_served_path.py: of figures that are missing",
    **dict.fromkeys(
        (
            "served_digest_differs",
            "served_prompt_tokens_differ",
            "served_truncated",
            "served_control_text",
            "served_text_differs",
            "served_stop_differs",
            "served_rouge_l_loss",
        ),
        "test_gate_served.py, test_served.py: of an endpoint",
    ),
}


@dataclass
class Judged:
    """One model's artifacts, whole, damaged and changed, all judged in one evaluation."""

    chain: Chain
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by digest

    def verdict(self, name: str) -> Verdict:
        return self.verdicts[self.artifacts[name].digest]

    def failed(self, name: str) -> set[str]:
        return {reason.code for reason in self.verdict(name).reasons if reason.outcome == "fail"}


def judge_all(tmp: Path, model: Trained, doses: bool) -> Judged:
    chain = trained_chain(tmp, model)
    whole = chain.artifacts
    adapter, merged = whole["adapter"], whole["merged"]
    whole["merged32"] = merge_adapter(adapter, tmp / "m32", dtype="float32", base_weights="nf4")
    whole["merged16"] = merge_adapter(adapter, tmp / "m16", base_weights="w16")
    whole |= zip(MORE_QUANTS, export_gguf(merged, tmp / "more", quants=MORE_QUANTS), strict=True)
    judged = Judged(chain, dict(whole))
    for at, damage in enumerate(EVERY_DAMAGE):
        judged.artifacts[f"{damage.of}: {damage.name}"] = remake(
            whole[damage.of], tmp / f"damage-{at}", functools.partial(_apply, damage.do, chain)
        )
    for at, dosed in enumerate(DOSED if doses else ()):
        for dose in dosed.doses:
            judged.artifacts[f"{dosed.of}: {dosed.name}: {dose:g}"] = remake(
                whole[dosed.of], tmp / f"dose-{at}-{dose:g}", functools.partial(_apply, dosed.do(dose), chain)
            )
    for at, harmless in enumerate(HARMLESS):
        judged.artifacts[harmless.name] = harmless.make(chain, tmp / f"harmless-{at}")
    damaged = judged.artifacts[f"merged: {DAMAGES[0].name}"]
    [judged.artifacts[OF_A_BAD_MERGE]] = export_gguf(damaged, tmp / "of-a-bad-merge", quants=["q8_0"])
    base = base_at_bin_edges(chain, dialogues(16, 2), tmp / "edges")
    peft = Path(shutil.copytree(model.peft, tmp / "peft-on-edges"))  # another adapter than that on the true base
    (peft / "adapter_config.json").write_text((peft / "adapter_config.json").read_text() + "\n")
    on_edges = make_adapter_artifact(tmp / "on-edges", base, peft)
    judged.artifacts[BAD_BASE] = merge_adapter(on_edges, tmp / "edges16", base_weights="w16")
    _evaluate(list({a.digest: a for a in judged.artifacts.values()}.values()), dialogues(ENOUGH), tmp / "eval")
    judged.verdicts = {verdict.digest: verdict for verdict in read_verdicts(tmp / "eval")}
    return judged


def _apply(do, chain: Chain, folder: Path) -> None:  # type: ignore[no-untyped-def]
    do(folder, chain)


def _evaluate(artifacts: list[Artifact], documents: list[Example], out: Path, threads: int = 1) -> None:
    evaluate(artifacts, documents, out, recipe=RECIPE, threads=threads, speed=False)


@pytest.fixture(scope="module", params=SEEDS)
def judged(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    trained_model: Callable[[int], Trained],
) -> Judged:
    with pytest.MonkeyPatch.context() as patch:
        figures_only(patch)
        model = trained_model(request.param)
        return judge_all(tmp_path_factory.mktemp("detection"), model, doses=request.param == FIRST)


def test_the_whole_ones_pass(judged: Judged) -> None:
    for name in judged.chain.artifacts:
        if name != "adapter":
            verdict = judged.verdict(name)
            assert verdict.outcome == "pass", (name, [r for r in verdict.reasons if r.outcome != "pass"])


def test_every_damage_fails_for_its_own_reason(judged: Judged) -> None:
    wrong = {}
    for damage in EVERY_DAMAGE:
        name = f"{damage.of}: {damage.name}"
        failed = judged.failed(name)
        if not damage.codes <= failed or failed - damage.codes - FOLLOWS:
            wrong[name] = (failed, sorted(damage.codes))
    assert not wrong
    say_at_the_end(
        "detection",
        f"{len(EVERY_DAMAGE)} kinds of damage, each refused for its own reason under default limits",
    )


def test_what_was_made_of_a_damaged_merge_fails_with_it(judged: Judged) -> None:
    verdict = judged.verdict(OF_A_BAD_MERGE)
    assert verdict.outcome == "fail"
    assert judged.failed(OF_A_BAD_MERGE) == {"reference_not_passed"}, "from the merge it was made of it is not far"


def test_a_base_that_is_good_as_nf4_alone_is_refused(judged: Judged) -> None:
    failed = judged.failed(BAD_BASE)
    assert failed >= BASE_CHANGE
    assert not failed - BASE_CHANGE - FOLLOWS, "the merge itself is faithful"


def test_every_reason_to_fail_is_seen_to_say_no(judged: Judged) -> None:
    """Each code of the gate, by a damage that is there for it, or elsewhere."""
    codes = set(re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)+", str(evalsuite.gate.__doc__).split("Reason codes")[1]))
    assert len(codes) > 25
    seen = judged.failed(BAD_BASE) & (BASE_CHANGE | RUINED)
    for damage in EVERY_DAMAGE:
        seen |= judged.failed(f"{damage.of}: {damage.name}") & (damage.codes | RUINED)
    seen |= judged.failed(OF_A_BAD_MERGE)
    assert not codes - seen - set(ELSEWHERE)


def test_harmless_changes_pass(judged: Judged) -> None:
    wrong = {}
    for harmless in HARMLESS:
        verdict = judged.verdict(harmless.name)
        if verdict.outcome != "pass":
            wrong[harmless.name] = [reason.text for reason in verdict.reasons if reason.outcome != "pass"]
    assert not wrong
    say_at_the_end("harmless", f"{len(HARMLESS)} harmless rewritings pass under default limits")


def test_an_f32_gguf_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_model: Callable[[int], Trained]
) -> None:
    """Of all types it has the strictest limits, so that it takes the most documents to be within them."""
    figures_only(monkeypatch)
    chain = trained_chain(tmp_path, trained_model(FIRST))
    [f32] = export_gguf(chain.artifacts["merged"], tmp_path / "f32", quants=["f32"])
    _evaluate([chain.artifacts["merged"], f32], dialogues(ENOUGH_FOR_F32), tmp_path / "eval")
    verdicts = read_verdicts(tmp_path / "eval")
    assert {verdict.label: verdict.outcome for verdict in verdicts} == {"merged": "pass", "f32": "pass"}


def test_small_doses_are_detected_and_the_smallest_is_said(judged: Judged, request: pytest.FixtureRequest) -> None:
    seed = request.node.callspec.params["judged"]
    if seed != FIRST:
        pytest.skip("doses are given to the first model only")
    for dosed in DOSED:
        refused = [judged.verdict(f"{dosed.of}: {dosed.name}: {dose:g}").outcome == "fail" for dose in dosed.doses]
        assert refused[0], f"{dosed.name}: not even {dosed.doses[0]:g} {dosed.unit} is seen"
        assert refused == sorted(refused, reverse=True), f"{dosed.name}: a smaller dose is seen where a larger is not"
        smallest = dosed.doses[sum(refused) - 1]
        of_tried = f"least tried {dosed.doses[-1]:g}"
        say_at_the_end(
            f"dose {dosed.of} {dosed.name} {seed}",
            f"{dosed.of}, {dosed.name}: {smallest:g} {dosed.unit} is refused ({of_tried}), model {seed}",
        )


def test_harmless_ways_of_running_pass(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    trained_model: Callable[[int], Trained],
) -> None:
    """One model, evaluated again and again: nothing of how it is run changes a verdict."""
    figures_only(monkeypatch)
    chain = trained_chain(tmp_path_factory.mktemp("ways"), trained_model(FIRST))
    artifacts = [chain.artifacts[name] for name in ("merged", "f16", "q8_0")]
    wrong = {}
    for at, way in enumerate(OTHER_WAYS):

        def load(artifact: Artifact, **settings: object) -> object:
            return load_runtime(artifact, **{**settings, **way.runtime})  # type: ignore[arg-type]  # noqa: B023

        monkeypatch.setattr(evalsuite.walk, "load_runtime", load)
        out = tmp_path_factory.mktemp("ways") / str(at)
        _evaluate(artifacts, way.choose(dialogues(2 * ENOUGH)), out, way.threads)
        found = {verdict.label: verdict.outcome for verdict in read_verdicts(out)}
        if found != {"merged": "pass", "f16": "pass", "q8_0": "pass"}:
            wrong[way.name] = found
    assert not wrong
    say_at_the_end("ways", f"{len(OTHER_WAYS)} other ways of running change no verdict")
