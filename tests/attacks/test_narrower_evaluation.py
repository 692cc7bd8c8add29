"""A broken merge and an export made from it: no choice of what is listed, given or left out makes the export pass."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from contract.artifact import Artifact, Parent, new_artifact, open_artifact
from contract.errors import AssayError
from contract.example import write_examples
from contract.history import begin, known_history, last_evaluation, standing
from contract.recipe import Recipe
from contract.verdict import Verdict
from evalsuite.cli import eval_command, gate_command
from evalsuite.evaluate import evaluate
from evalsuite.plan import Node, plan
from evalsuite.rejudge import rejudge
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from serve.proof import UnprovenError, refuse_unproven
from tests.evalsuite.chain import edit_tensors, examples, make_adapter_artifact, remake
from tests.evalsuite.quick import figures_only
from tests.kit.verdicts import basis, limits, write_verdicts

pytestmark = pytest.mark.engine

RECIPE = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": 4}})


@dataclass(frozen=True)
class Broken:
    """A merge with one tensor a tenth larger, the F16 made from it, and both as an evaluation left them."""

    base: Path
    good: Artifact
    merged: Artifact
    f16: Artifact
    folder: Path

    def copy(self, tmp: Path) -> Broken:
        """For a test that writes."""
        shutil.copytree(self.folder, tmp / "broken")
        moved = {name: open_artifact(tmp / "broken" / name) for name in ("merged", "f16")}
        return replace(self, folder=tmp / "broken", **moved)


def _larger(tensors: dict[str, object]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name] * 1.1  # type: ignore[operator]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, adapter_folder: Path) -> Broken:
    tmp = tmp_path_factory.mktemp("narrower")
    adapter = make_adapter_artifact(tmp / "adapter", llama_folder, adapter_folder, quant="w16")
    good = merge_adapter(adapter, tmp / "good")
    merged = remake(good, tmp / "runs" / "merged", lambda folder: edit_tensors(folder, _larger))
    [f16] = export_gguf(merged, tmp / "made", quants=["f16"])
    f16.path.rename(tmp / "runs" / "f16")
    f16 = open_artifact(tmp / "runs" / "f16")
    with pytest.MonkeyPatch.context() as patch:
        figures_only(patch)
        judge(tmp / "eval", merged, f16)
    return Broken(llama_folder, good, merged, f16, tmp / "runs")


def judge(out: Path, *artifacts: Artifact, count: int = 6, **options: object) -> dict[str, Verdict]:
    evaluate(artifacts, examples(count), out, recipe=RECIPE, threads=1, speed=False, **options)  # type: ignore[arg-type]
    return {verdict.digest: verdict for verdict in last_evaluation(out).verdicts}


def codes(verdict: Verdict) -> set[str]:
    return {reason.code for reason in verdict.reasons if reason.outcome == "fail"}


def refuse(artifact: Artifact) -> str:
    with pytest.raises(UnprovenError) as refusal:
        refuse_unproven(open_artifact(artifact.path))
    return str(refusal.value)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    figures_only(monkeypatch)


def test_both_listed(broken: Broken) -> None:
    assert "merge_kl_gold" in refuse(broken.merged)
    assert "reference_not_passed" in refuse(broken.f16)


@pytest.mark.parametrize("given", ["nothing", "the merge as reference", "the merge as base", "half the documents"])
def test_the_export_alone(broken: Broken, tmp_path: Path, given: str) -> None:
    copy = broken.copy(tmp_path)
    options = {
        "nothing": {},
        "the merge as reference": {"reference": broken.merged},
        "the merge as base": {"base": broken.merged},
        "half the documents": {"count": 3},
    }[given]
    verdicts = judge(tmp_path / "eval", copy.f16, **options)
    assert "reference_not_passed" in codes(verdicts[copy.f16.digest])
    assert {"merge_kl_gold", "merge_kl_greedy"} <= codes(verdicts[broken.merged.digest]), "it is judged, listed or not"
    assert "reference_not_passed" in refuse(copy.f16)


def test_the_merge_moved_away_and_another_given(broken: Broken, tmp_path: Path) -> None:
    """What it was made from is not here, so a comparison with something else proves nothing."""
    with new_artifact(
        tmp_path / "f16",
        "gguf",
        "tiny",
        parents=[Parent("merged", str(tmp_path / "gone"), broken.merged.digest)],
        details=broken.f16.details,
    ) as draft:
        shutil.copy(broken.f16.gguf_path, draft.path / broken.f16.gguf_path.name)
    verdict = judge(tmp_path / "eval", draft.finished, reference=broken.merged)[draft.finished.digest]
    assert "reference_not_passed" in codes(verdict), "found by its digest, wherever it lies now"
    verdict = judge(tmp_path / "again", draft.finished, reference=broken.good)[draft.finished.digest]
    assert verdict.outcome != "pass"
    assert ("lineage_not_found", "inconclusive") in {(reason.code, reason.outcome) for reason in verdict.reasons}


def test_the_same_file_in_an_ollama_folder(broken: Broken, tmp_path: Path) -> None:
    from export.ollama import export_ollama

    made = export_ollama(broken.f16, tmp_path / "ollama").artifact
    assert "it was made from tiny, and that did not pass" in refuse(made)
    verdicts = judge(tmp_path / "eval", made)
    assert "reference_not_passed" in codes(verdicts[made.digest])


def test_an_earlier_fail_of_the_merge_counts_where_it_passes_now(broken: Broken, tmp_path: Path) -> None:
    """The good merge failed on other documents: an export of it does not pass on these."""
    good = remake(broken.good, tmp_path / "good", lambda folder: None)
    write_verdicts(good.verdict_path, [Verdict("merged", good.digest, "fail", ())], on=basis(30))
    [f16] = export_gguf(good, tmp_path / "made", quants=["f16"])
    verdicts = judge(tmp_path / "eval", good, f16)
    assert codes(verdicts[good.digest]) == set()
    assert "reference_not_passed" in codes(verdicts[f16.digest])
    history = known_history(good.verdict_path)
    counts = standing(history, good.digest)
    assert len(history) == 2
    assert counts is not None
    assert counts.state == "fail"


def test_every_kind_of_export_is_judged_with_what_it_was_made_from(broken: Broken, tmp_path: Path) -> None:
    """An ONNX folder, and a GGUF made straight from the adapter: what stands between has a comparison of its own."""
    with new_artifact(
        tmp_path / "int8",
        "onnx",
        "tiny",
        parents=[Parent("merged", str(broken.merged.path), broken.merged.digest)],
        details={"precision": "int8"},
    ) as draft:
        (draft.path / "model.onnx").write_bytes(b"onnx")
    nodes = {node.artifact.digest: node for root in plan([draft.finished], None, None) for node in root.all}
    roles = {node.label: node.role for node in nodes.values() if isinstance(node, Node)}
    assert roles == {"adapter": "reference", "merged": "candidate", "onnx-int8": "candidate"}
    gone = Parent("merged", str(tmp_path / "x"), "1" * 64)
    with new_artifact(tmp_path / "lost", "onnx", "tiny", parents=[gone], details={"precision": "int8"}) as lost:
        (lost.path / "model.onnx").write_bytes(b"onnx")
    [node] = plan([lost.finished], None, None)
    assert node.lost is not None
    assert node.role == "candidate"


def run(command: object, *arguments: object) -> tuple[int, str]:
    try:
        done = CliRunner(catch_exceptions=False).invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]
    except AssayError as error:
        return error.exit_code, str(error)
    return done.exit_code, done.output


def test_commands_exit_with_1_and_say_what_is_missing(broken: Broken, tmp_path: Path) -> None:
    copy = broken.copy(tmp_path)
    write_examples(tmp_path / "data.jsonl", examples(6))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: t\nmodel: {base: x}\ngenerate: {max_new_tokens: 4}\ngate: {require: [merged, q4_k_m]}\n")
    given = copy.f16.path, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "eval", "--threads", "1"
    code, said = run(eval_command, *given, "--recipe", recipe)
    assert code == 1
    assert "required but not judged here: q4_k_m" in said
    assert run(gate_command, tmp_path / "eval")[0] == 1


def test_figures_that_were_edited_are_not_judged(broken: Broken, tmp_path: Path) -> None:
    copy = broken.copy(tmp_path)
    judge(tmp_path / "eval", copy.merged)
    path = tmp_path / "eval" / "metrics.json"
    data = json.loads(path.read_text())
    for row in data["rows"]:
        for comparison in row["comparisons"]:
            for noise in comparison["noise"]:
                noise["rounding_kl"] = 1.0
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    code, said = run(gate_command, tmp_path / "eval")
    assert (code, "metrics.json was edited" in said) == (2, True)


@pytest.mark.parametrize("limit", ["max_kl_nats: 1.0e+9", "min_top1_agreement: 0", "max_rouge_l_loss: 100"])
def test_limits_that_cannot_say_no_are_refused(broken: Broken, tmp_path: Path, limit: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: t\nmodel: {{base: x}}\ngate: {{quant: {{f16: {{{limit}}}}}}}\n")
    write_examples(tmp_path / "data.jsonl", examples(6))
    given = broken.f16.path, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "eval", "--recipe", recipe
    code, said = run(eval_command, *given)
    assert code == 2
    assert limit.partition(":")[0] in said
    assert not (tmp_path / "eval").exists()


def test_a_run_that_was_moved_finds_what_it_was_made_from(broken: Broken, tmp_path: Path) -> None:
    merged = remake(broken.merged, tmp_path / "run" / "merged", lambda folder: None)
    [f16] = export_gguf(merged, tmp_path / "run" / "gguf", quants=["f16"])
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = open_artifact(tmp_path / "moved" / "gguf" / "f16")
    roles = {node.label: node.role for root in plan([moved], None, None) for node in root.all}
    assert roles == {"adapter": "reference", "merged": "candidate", "f16": "candidate"}
    shutil.rmtree(tmp_path / "moved" / "merged")
    (tmp_path / "run" / "merged").mkdir(parents=True)  # where it lay is something else now
    [node] = plan([moved], None, None)
    assert node.lost is not None
    assert f16.digest == moved.digest


def test_a_base_that_was_changed_is_no_reference(tmp_path: Path, broken: Broken, adapter_folder: Path) -> None:
    """A merge that is wrong by as much as the base is now wrong too would look right."""
    with new_artifact(tmp_path / "base", "merged", "base") as draft:
        shutil.copytree(broken.base, draft.path, dirs_exist_ok=True)
    adapter = make_adapter_artifact(tmp_path / "adapter", draft.finished.path, adapter_folder, quant="w16")
    merged = merge_adapter(adapter, tmp_path / "merged")
    edit_tensors(draft.finished.path, _larger)
    with pytest.raises(AssayError, match="not intact"):
        judge(tmp_path / "eval", merged)


def test_judging_again_goes_on_after_one_that_was_killed(broken: Broken, tmp_path: Path) -> None:
    copy = broken.copy(tmp_path)
    judge(tmp_path / "eval", copy.merged)
    last = last_evaluation(tmp_path / "eval")
    stricter = replace(last.basis, limits=limits(max_eos_rate_loss=0.01), metrics_sha256=None)
    begin(tmp_path / "eval" / "verdict.json", replace(last, basis=stricter, verdicts=(), finished=False))
    rejudge(tmp_path / "eval", RECIPE.gate)
    assert last_evaluation(tmp_path / "eval").basis.limits == last.basis.limits


@pytest.mark.slow
def test_killed_at_any_moment_no_old_pass_stands(broken: Broken, tmp_path: Path) -> None:
    """An old pass on the broken merge's export, then an evaluation that is killed: it never counts again."""
    copy = broken.copy(tmp_path)
    data = tmp_path / "data.jsonl"
    write_examples(data, examples(6))
    moments = [0.2 * number for number in range(4, 30, 3)]
    seen = set()
    for number, moment in enumerate(moments):
        copy.f16.verdict_path.unlink(missing_ok=True)
        write_verdicts(copy.f16.verdict_path, [Verdict("f16", copy.f16.digest, "pass", ())], on=basis(20))
        before = copy.f16.verdict_path.read_bytes()
        arguments = ["eval", copy.f16.path, "--data", data, "--out", tmp_path / str(number), "--threads", "1"]
        process = subprocess.Popen([sys.executable, "-m", "assay", *map(str, arguments)], stderr=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts = standing(known_history(copy.f16.verdict_path), copy.f16.digest)
        assert counts is not None
        untouched = copy.f16.verdict_path.read_bytes() == before
        measured = list((tmp_path / str(number)).glob("cache/node-*"))
        assert counts.state in ("unfinished", "fail") or (untouched and not measured)
        seen.add(counts.state)
    assert "unfinished" in seen


def test_a_copy_or_a_link_of_a_failed_file_is_not_held_against_itself(broken: Broken, tmp_path: Path) -> None:
    """Between a file and itself nothing is ever found."""
    linked = [tmp_path / f"{number}.gguf" for number in range(2)]
    for link in linked:
        link.symlink_to(broken.f16.gguf_path)
    assert open_artifact(linked[0]).digest == broken.f16.digest, "it is the artifact that it leads to"
    copies = [Path(shutil.copy(broken.f16.gguf_path, tmp_path / f"copy-{number}.gguf")) for number in range(2)]
    one, two = map(open_artifact, copies)
    [node, _] = [node for root in plan([one], two, None) for node in root.all]
    assert (node.role, node.purpose) == ("candidate", None)
