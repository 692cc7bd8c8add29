"""The stage and its commands on what Assay did not make, on folders that are not evaluations, and after changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from contract.artifact import new_artifact, open_artifact
from contract.errors import AssayError
from contract.example import write_examples
from evalsuite.cli import eval_command, gate_command
from evalsuite.evaluate import evaluate
from evalsuite.plan import plan
from evalsuite.results import read_results
from export.to_gguf import export_gguf
from tests.evalsuite.chain import examples, make_adapter_artifact
from tests.kit.dialogues import ENOUGH, dialogues
from tests.kit.trained import Trained

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model_folder(trained_model: Callable[[int], Trained]) -> Path:
    """A plain Hugging Face folder of a model that has learned its task. Do not write into it."""
    return trained_model(11).base


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A bare .gguf: nobody knows where it came from."""
    tmp = tmp_path_factory.mktemp("bare")
    [made] = export_gguf(open_artifact(model_folder), tmp / "made", quants=["f16"])
    return Path(shutil.copy(made.gguf_path, tmp / "bare.gguf"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, gguf: Path) -> Path:
    """`assay eval bare.gguf --reference folder`, speed and all."""
    tmp = tmp_path_factory.mktemp("done")
    write_examples(tmp / "data.jsonl", dialogues(ENOUGH, hears=True))
    recipe = tmp / "recipe.yaml"
    recipe.write_text("name: t\nmodel: {base: x}\ngenerate: {max_new_tokens: 16}\ngate: {require: [f16]}\n")
    result = CliRunner(catch_exceptions=False).invoke(
        eval_command,
        [
            str(gguf),
            "--reference",
            str(model_folder),
            "--data",
            str(tmp / "data.jsonl"),
            "--out",
            str(tmp / "eval"),
            "--recipe",
            str(recipe),
            "--threads",
            "1",
        ],
    )
    (tmp / "stdout").write_text(result.stdout)
    (tmp / "exit").write_text(str(result.exit_code))
    return tmp


def test_a_bare_gguf_against_a_plain_folder(done: Path, gguf: Path) -> None:
    printed = (done / "stdout").read_text()
    assert (done / "exit").read_text() == "0", printed
    assert "PASS         f16" in printed
    assert "lead-3" in printed
    results = read_results(done / "eval")
    assert [(row.label, row.role) for row in results.rows] == [("merged", "reference"), ("f16", "candidate")]
    speed = results.row("f16").speed
    assert speed is not None
    assert speed.per_token_ms > 0
    assert speed.peak_rss_bytes > 1e7
    assert speed.output_tokens == 32
    assert not (gguf.parent / "verdict.json").exists(), "nothing is written beside what Assay did not make"


def test_the_gate_judges_again_and_by_other_limits(done: Path) -> None:
    def gate(*options: str) -> tuple[int, dict[str, object]]:
        result = CliRunner(catch_exceptions=False).invoke(gate_command, [str(done / "eval"), "--json", *options])
        return result.exit_code, json.loads(result.stdout)

    code, said = gate()
    assert (code, said["proven"]) == (0, True)
    recipe = done / "stricter.yaml"
    recipe.write_text("name: t\nmodel: {base: x}\ngate:\n  require: [f16]\n  quant: {f16: {max_kl_nats: 1.0e-12}}\n")
    code, said = gate("--recipe", str(recipe))
    assert (code, said["proven"]) == (1, False)
    recipe.write_text("name: t\nmodel: {base: x}\ngate:\n  require: [f16, q4_k_m]\n")
    code, said = gate("--recipe", str(recipe))
    assert code == 1, "what was not judged has not passed"


def test_the_gate_refuses_files_that_are_not_those_that_were_scored(done: Path, gguf: Path) -> None:
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[:-7] + b"changed")
    try:
        with pytest.raises(AssayError, match="no longer those"):
            CliRunner(catch_exceptions=False).invoke(gate_command, [str(done / "eval")])
    finally:
        gguf.write_bytes(whole)


def test_alone_it_is_scored_but_nothing_is_proven(tmp_path: Path, gguf: Path) -> None:
    write_examples(tmp_path / "data.jsonl", examples(4))
    result = CliRunner(catch_exceptions=False).invoke(
        eval_command,
        [
            str(gguf),
            "--data",
            str(tmp_path / "data.jsonl"),
            "--out",
            str(tmp_path / "eval"),
            "--limit",
            "3",
            "--threads",
            "1",
            "--json",
        ],
    )
    said = json.loads(result.stdout)
    assert result.exit_code == 1
    assert said["results"]["data"]["documents"] == 3
    [verdict] = said["verdicts"]
    assert (verdict["outcome"], verdict["reasons"][0]["code"]) == ("inconclusive", "no_reference")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, gguf: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(AssayError, match="not an evaluation"):
        evaluate([open_artifact(gguf)], examples(1), tmp_path)


def test_lineage_decides_who_is_compared_with_whom(tmp_path: Path, llama_folder: Path, adapter_folder: Path) -> None:
    from contract.artifact import Artifact, Parent, new_artifact
    from contract.prompt import PromptSpec

    adapter = make_adapter_artifact(tmp_path / "adapter", llama_folder, adapter_folder)
    base = open_artifact(llama_folder)

    def merged(name: str, merged_on: str) -> Artifact:
        parents = [Parent("adapter", str(adapter.path), adapter.digest)]
        details = {"merged_on": merged_on, "prompt": PromptSpec().as_dict()}
        with new_artifact(tmp_path / name, "merged", name, parents=parents, details=details) as draft:
            shutil.copytree(llama_folder, draft.path, dirs_exist_ok=True)
            (draft.path / "note.json").write_text(json.dumps(name))
        return draft.finished

    on_w16, on_nf4 = merged("w", "w16"), merged("n", "nf4")
    [root] = plan([on_w16, on_nf4], None, base)  # the adapter is found by its path
    assert [(node.label, node.base_weights, node.purpose, node.role, node.is_row) for node in root.all] == [
        ("adapter", None, None, "reference", True),
        ("base", None, "training", "reference", True),
        ("adapter", "w16", "base_change", "reference", False),
        ("merged", None, "merge_fidelity", "candidate", True),
        ("merged-2", None, "merge_fidelity", "candidate", True),
    ]
    assert root.children[-1].artifact is on_nf4, "on its training base: compared with the adapter as it was trained"
    stranger = open_artifact(llama_folder)  # its reference has lineage of its own
    [root] = plan([stranger], on_nf4, None)
    assert [(node.label, node.purpose, node.role) for node in root.all if node.is_row] == [
        ("adapter", None, "reference"),
        ("merged-2", "merge_fidelity", "candidate"),
        ("merged", "quantization", "candidate"),
    ]
    [alone] = plan([adapter], None, None)
    assert (alone.role, alone.children) == ("candidate", [])
    shutil.rmtree(adapter.path)
    first, second = plan([on_w16, on_nf4], None, None)
    assert first.role == second.role == "candidate"
    with pytest.raises(AssayError, match="listed twice"):
        plan([on_w16, on_w16], None, None)


def test_limits_that_were_damaged_are_one_message(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(done / "eval", folder)
    body = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**body, "limits": {"quant": 3}}))
    result = CliRunner().invoke(gate_command, [str(folder)])
    assert isinstance(result.exception, AssayError)
    assert "limits" in str(result.exception)


def test_artifacts_that_write_in_different_ways_are_not_judged_by_one(tmp_path: Path) -> None:
    artifacts = []
    for name, penalty in (("one", 1.0), ("two", 1.5)):
        details = {"generate": {"max_new_tokens": 8, "repetition_penalty": penalty}}
        with new_artifact(tmp_path / name, "merged", name, details=details) as draft:
            (draft.path / "config.json").write_text("{}")
        artifacts.append(draft.finished)
    with pytest.raises(AssayError, match="different ways to write summaries"):
        evaluate(artifacts, examples(2), tmp_path / "eval", threads=1)
    assert not (tmp_path / "eval").exists()
