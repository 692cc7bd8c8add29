"""An artifact that cannot be loaded fails by itself: the others are scored, and everything written says so."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError, NoEngineError
from contract.example import write_examples
from contract.history import read_verdicts
from contract.limits import GatePart
from contract.verdict import Reason, Verdict
from evalsuite.cli import eval_command, gate_command
from evalsuite.evaluate import evaluate
from evalsuite.gate import judge, required
from evalsuite.rejudge import rejudge
from evalsuite.report.content import content
from evalsuite.report.terminal import text_table
from evalsuite.results import Unloadable, read_results
from export.to_gguf import export_gguf
from tests.evalsuite.chain import edit_tensors, examples, remake
from tests.evalsuite.made import results, row
from tests.evalsuite.quick import figures_only
from tests.tiny import make_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(make_llama(tmp_path_factory.mktemp("model") / "model", seed=1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Artifact) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("made") / "gguf"
    f16, q8_0 = export_gguf(model, folder, quants=["f16", "q8_0"], check="structure")
    return {"f16": f16, "q8_0": q8_0}


def copied(artifact: Artifact, to: Path) -> Artifact:
    """With everything beside it, as it was made."""
    shutil.copytree(artifact.folder, to)
    return open_artifact(to)


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def run(artifacts: list[Artifact], out: Path, reference: Artifact | None) -> None:
    evaluate(artifacts, examples(2), out, reference=reference, threads=1, speed=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    figures_only(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Artifact, made: dict[str, Artifact]) -> Path:
    """`assay eval` of a sound F16, of a Q8_0 whose file was cut off since, and of one that never was whole."""
    tmp = tmp_path_factory.mktemp("done")
    copied(made["f16"], tmp / "f16")
    cut(copied(made["q8_0"], tmp / "q8_0").gguf_path, 0.8)
    bare = shutil.copy(made["f16"].gguf_path, tmp / "bare.gguf")
    cut(bare, 0.99)
    write_examples(tmp / "data.jsonl", examples(2))
    arguments = [tmp / "f16", tmp / "q8_0", bare, "--reference", model.path, "--data", tmp / "data.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evalsuite.scorer.bertscore_available", lambda: False)
        told = CliRunner(catch_exceptions=False).invoke(
            eval_command, [str(argument) for argument in (*arguments, "--out", tmp / "eval", "--threads", "1")]
        )
    (tmp / "exit").write_text(str(told.exit_code))
    (tmp / "stdout").write_text(told.stdout)
    return tmp


def test_the_others_are_scored(done: Path) -> None:
    assert (done / "exit").read_text() == "1"
    found = read_results(done / "eval")
    assert [row.label for row in found.rows] == ["merged", "f16"]
    assert found.row("f16").speed is not None
    assert [(each.label, each.kind, each.foreign) for each in found.unloadable] == [
        ("q8_0", "gguf", False),
        ("bare", "gguf", True),
    ]
    assert found.require == ("f16", "q8_0", "bare")
    verdicts = {verdict.label: verdict for verdict in read_verdicts(done / "eval")}
    assert verdicts["f16"].outcome == "inconclusive", "two documents are too few, and that is all"
    for label, says in (("q8_0", "bytes, "), ("bare", "")):
        [reason] = verdicts[label].reasons
        assert (verdicts[label].outcome, reason.code, reason.outcome) == ("fail", "not_loadable", "fail")
        assert says in reason.text


def test_everything_that_is_written_says_so(done: Path) -> None:
    with (done / "eval" / "metrics.csv").open(encoding="utf-8") as file:
        lines = {line["label"]: line for line in csv.DictReader(file)}
    assert (lines["q8_0"]["verdict"], lines["q8_0"]["quant"], lines["q8_0"]["rougeL"]) == ("fail", "q8_0", "")
    assert (lines["bare"]["verdict"], lines["bare"]["kind"]) == ("fail", "gguf")
    printed = (done / "stdout").read_text()
    assert "FAIL         q8_0\n    not_loadable (fail): it could not be loaded: the artifact is not intact" in printed
    assert "not loadable" in next(line for line in printed.splitlines() if line.startswith("bare "))
    html = (done / "eval" / "report.html").read_text(encoding="utf-8")
    assert html.count("could not be loaded") >= 6, "two columns, two verdicts, two lines of what is fit to ship"
    assert "not_loadable" in html
    assert (done / "eval" / "report.pdf").stat().st_size > 5000


@pytest.mark.usefixtures("quick")
def test_the_verdict_lies_beside_it_and_the_gate_says_it_again(done: Path) -> None:
    [stamped] = read_verdicts(done / "q8_0" / "verdict.json")
    assert (stamped.outcome, stamped.digest) == ("fail", open_artifact(done / "q8_0").digest)
    told = CliRunner(catch_exceptions=False).invoke(gate_command, [str(done / "eval"), "--json"])
    said = json.loads(told.stdout)
    assert (told.exit_code, said["require"]) == (1, ["f16", "q8_0", "bare"])
    gate = GatePart(require=["q8_0"])
    assert [v.outcome for v in rejudge(done / "eval", gate) if v.label == "q8_0"] == ["fail"]
    assert read_results(done / "eval").require == ("q8_0",)


@pytest.mark.usefixtures("quick")
def test_once_it_is_whole_again_it_is_scored(made: dict[str, Artifact], model: Artifact, tmp_path: Path) -> None:
    f16, q8_0 = copied(made["f16"], tmp_path / "f16"), copied(made["q8_0"], tmp_path / "q8_0")
    whole = q8_0.gguf_path.read_bytes()
    cut(q8_0.gguf_path, 0.5)
    run([f16, q8_0], tmp_path / "eval", model)
    q8_0.gguf_path.write_bytes(whole)
    run([f16, q8_0], tmp_path / "eval", model)
    found = read_results(tmp_path / "eval")
    assert [row.label for row in found.rows] == ["merged", "f16", "q8_0"]
    assert found.unloadable == ()
    [stamped] = read_verdicts(q8_0.path / "verdict.json")
    assert "not_loadable" not in {reason.code for reason in stamped.reasons}


def swap_bytes(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)


def lose_a_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "gguf cut in its tensors": ("q8_0", lambda folder: cut(next(folder.glob("*.gguf")), 0.7), ""),
    "gguf cut in its header": ("q8_0", lambda folder: cut(next(folder.glob("*.gguf")), 0.001), ""),
    "weights cut off": ("model", lambda folder: cut(folder / "model.safetensors", 0.9), "do not make a model"),
    "weights without header": (
        "model",
        lambda folder: swap_bytes(folder / "model.safetensors", 0),
        "not a safetensors file",
    ),
    "a tensor lost": ("model", lose_a_tensor, "do not match its config"),
    "weights gone": ("model", lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
    "config that is no JSON": ("model", lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
}


@pytest.mark.usefixtures("quick")
def test_damage_that_no_hash_shows(made: dict[str, Artifact], model: Artifact, tmp_path: Path) -> None:
    """Done before the manifest was written, or offered as somebody else's."""
    artifacts = {"f16": made["f16"]}
    for at, (name, (of, damage, _)) in enumerate(DAMAGES.items()):
        if of == "model":
            folder = Path(shutil.copytree(model.path, tmp_path / f"damage-{at}"))
            damage(folder)
            artifacts[name] = open_artifact(folder)
        else:
            artifacts[name] = remake(made[of], tmp_path / f"damage-{at}", damage)
    run(list(artifacts.values()), tmp_path / "eval", model)
    found = read_results(tmp_path / "eval")
    assert [row.digest for row in found.rows] == [model.digest, made["f16"].digest]
    assert sorted(each.digest for each in found.unloadable) == sorted(
        artifact.digest for name, artifact in artifacts.items() if name != "f16"
    )
    assert len({each.label for each in (*found.rows, *found.unloadable)}) == 2 + len(DAMAGES)
    errors = {each.digest: each.error for each in found.unloadable}
    for name, (_, _, says) in DAMAGES.items():
        assert says in errors[artifacts[name].digest], name


@pytest.mark.usefixtures("quick")
def test_what_others_are_compared_with_must_load(made: dict[str, Artifact], model: Artifact, tmp_path: Path) -> None:
    reference = open_artifact(shutil.copytree(model.path, tmp_path / "reference"))
    lose_a_tensor(reference.path)
    with pytest.raises(AssayError, match="not intact"):
        run([made["f16"]], tmp_path / "eval", reference)
    reference = open_artifact(reference.path)
    with pytest.raises(AssayError, match="do not match its config"):
        run([made["f16"]], tmp_path / "eval", reference)
    with pytest.raises(AssayError, match="do not match its config"):
        evaluate([made["f16"]], examples(1), tmp_path / "eval", reference=model, base=reference, speed=False)
    assert not (tmp_path / "eval" / "metrics.json").exists()


@pytest.mark.usefixtures("quick")
def test_where_nothing_else_is_asked_about_it_is_an_error(made: dict[str, Artifact], tmp_path: Path) -> None:
    bare = open_artifact(shutil.copy(made["f16"].gguf_path, tmp_path / "bare.gguf"))
    cut(bare.path, 0.99)
    for artifact in (bare, open_artifact(bare.path)):
        with pytest.raises(AssayError):
            run([artifact], tmp_path / "eval", None)
    run([made["q8_0"], open_artifact(bare.path)], tmp_path / "eval", None)
    assert [each.label for each in read_results(tmp_path / "eval").unloadable] == ["bare"]


@pytest.mark.usefixtures("quick")
def test_an_engine_that_is_missing_says_nothing_of_the_artifact(
    made: dict[str, Artifact], model: Artifact, tmp_path: Path
) -> None:
    lora = replace(made["q8_0"], manifest=replace(made["q8_0"].manifest, kind="gguf-lora"))
    with pytest.raises(NoEngineError, match="cannot run by itself"):
        run([made["f16"], lora], tmp_path / "eval", model)


def test_the_gate_and_the_table_take_them_as_they_are() -> None:
    lost = Unloadable("q4_0", "gguf", "tiny", "d" * 64, "run/q4_0", False, "q4_0", 5_000_000, "it is cut off")
    found = replace(results(), unloadable=(lost,))
    [verdict] = [verdict for verdict in judge(found, GatePart()) if verdict.label == "q4_0"]
    reason = Reason("not_loadable", "fail", "it could not be loaded: it is cut off")
    assert verdict == Verdict("q4_0", "d" * 64, "fail", (reason,))
    assert required(found.rows, GatePart(require=["q4_0"]), found.unloadable) == ("q4_0",)
    served = (row("served", kind="endpoint"),)
    assert required(served, GatePart(require=["merged", "q4_0"]), found.unloadable) == ("q4_0", "served")
    assert required(served, None, found.unloadable) == ("served", "q4_0")
    assert "5.0" in next(line for line in text_table(found).splitlines() if line.startswith("q4_0"))
    table = content(found, [verdict], Path("none")).comparison
    assert (table.columns[-1].label, table.columns[-1].note) == ("q4_0", "could not be loaded")
    assert all(len(line.cells) == len(table.columns) for line in table.lines)
    assert [line.cells[-1].value for line in table.lines if line.metric == "files"] == ["5 MB"]
