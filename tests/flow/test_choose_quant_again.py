"""Choosing a type once more: after a kill, beside another run, with other limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import flow.choose_quant
import flow.quant_bench
from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.example import write_examples
from contract.files import alone
from export.to_gguf import export_gguf
from flow.choose_quant import SELECTION_FILE, WORK_FOLDER, Selection
from flow.export_cli import export as exporting
from flow.quant_limits import Limits
from tests.evalsuite.chain import examples
from tests.flow.choosing import choose, left_in, make_model

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Artifact:
    return make_model(llama_folder, tmp_path_factory.mktemp("model") / "merged")


def test_interrupted_it_goes_on_and_finds_the_same(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(kl_nats=0.05)
    whole = choose(model, tmp_path / "whole", limits=limits)
    real, made = export_gguf, []

    def dies_at_the_third(*given: Any, **settings: Any) -> list[Artifact]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(settings["quants"][0])
        return real(*given, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(flow.quant_bench, "export_gguf", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            choose(model, tmp_path / "out", limits=limits)
    assert left_in(tmp_path / "out") == {WORK_FOLDER}

    def counts(*given: Any, **settings: Any) -> list[Artifact]:
        made.append(settings["quants"][0])
        return real(*given, **settings)

    monkeypatch.setattr(flow.quant_bench, "export_gguf", counts)
    resumed = choose(model, tmp_path / "out", limits=limits)
    assert sorted(made[:-1]) == sorted(set(made[:-1])), "none is made twice but the winner"
    assert resumed.as_json() == whole.as_json()
    names = [path.read_bytes() for path in (tmp_path / "whole" / SELECTION_FILE, tmp_path / "out" / SELECTION_FILE)]
    assert names[0] == names[1]


def killed_with_a_winner(model: Artifact, out: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Selection, "as_json", dies)
        with pytest.raises(KeyboardInterrupt):
            choose(model, out, **given)


def test_killed_after_the_winner_was_written(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"limits": Limits(size_bytes=10**9), "quants": ["q8_0", "q2_k"]}

    killed_with_a_winner(model, tmp_path / "out", monkeypatch, **given)
    assert left_in(tmp_path / "out") == {"q8_0", WORK_FOLDER}
    assert choose(model, tmp_path / "out", **given).winner is not None
    assert left_in(tmp_path / "out") == {"q8_0", SELECTION_FILE}


def test_killed_then_asked_for_a_check_that_was_not_made(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"limits": Limits(size_bytes=10**9), "quants": ["q8_0"]}
    killed_with_a_winner(model, tmp_path, monkeypatch, **given)
    assert "logits" not in open_artifact(tmp_path / "q8_0").manifest.measurements
    killed_with_a_winner(model, tmp_path, monkeypatch, check="logits", **given)
    checked = open_artifact(tmp_path / "q8_0").manifest.measurements["logits"]
    selection = choose(model, tmp_path, **given)
    assert selection.winner is not None
    assert selection.winner.manifest.measurements["logits"] == checked, "it is still there, not made again"
    assert left_in(tmp_path) == {"q8_0", SELECTION_FILE}


def test_killed_then_other_limits(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    quants = ["q8_0", "q2_k"]
    killed_with_a_winner(model, tmp_path, monkeypatch, limits=Limits(size_bytes=10**9), quants=quants)
    small = Limits(size_bytes=open_artifact(tmp_path / "q8_0").size_bytes - 1)
    killed_with_a_winner(model, tmp_path, monkeypatch, limits=small, quants=quants)
    assert left_in(tmp_path) == {"q2_k", WORK_FOLDER}
    assert choose(model, tmp_path, limits=Limits(size_bytes=1), quants=quants).winner is None
    assert left_in(tmp_path) == {SELECTION_FILE, WORK_FOLDER}


@pytest.mark.parametrize("noted", ['{"quant": ["q2_k"], "digest": 5}', '{"quant": "../q2_k", "digest": "0"}', "[", "5"])
def test_a_note_that_is_none_is_left_aside(tmp_path: Path, model: Artifact, noted: str) -> None:
    given: dict[str, Any] = {"limits": Limits(size_bytes=1), "quants": ["q2_k"]}
    assert choose(model, tmp_path, **given).winner is None
    (tmp_path / WORK_FOLDER / "winner.json").write_text(noted)
    assert choose(model, tmp_path, **given).winner is None


def test_a_lock_whose_folder_has_just_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="held"), alone(tmp_path / "gone" / ".lock", AssayError("held")):
        pass


def test_killed_then_somebody_elses_folder(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"limits": Limits(size_bytes=10**9), "quants": ["q8_0"]}
    killed_with_a_winner(model, tmp_path, monkeypatch, **given)
    shutil.rmtree(tmp_path / "q8_0")
    (tmp_path / "q8_0").mkdir()
    (tmp_path / "q8_0" / "mine").write_text("mine")
    with pytest.raises(AssayError, match="exists already"):
        choose(model, tmp_path, **given)
    assert (tmp_path / "q8_0" / "mine").read_text() == "mine"


def test_another_run_finishes_before_this_one_begins(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"limits": Limits(size_bytes=10**9), "quants": ["q2_k"]}
    real = flow.choose_quant._planned

    def meanwhile(*plan: Any, **settings: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(flow.choose_quant, "_planned", real)
            choose(model, tmp_path, **given)
        return real(*plan, **settings)

    monkeypatch.setattr(flow.choose_quant, "_planned", meanwhile)
    with pytest.raises(AssayError, match="exists already"):
        choose(model, tmp_path, **given)
    assert json.loads((tmp_path / SELECTION_FILE).read_text())["digest"] == open_artifact(tmp_path / "q2_k").digest


def test_the_work_folder_goes_while_it_is_held(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, held = shutil.rmtree, []

    def looks(path: Path, **given: Any) -> None:
        if path == tmp_path / WORK_FOLDER:
            with pytest.raises(AssayError, match="held"), alone(path / "cache" / ".lock", AssayError("held")):
                pass
            held.append(path)
        real(path, **given)

    monkeypatch.setattr(flow.choose_quant.shutil, "rmtree", looks)
    choose(model, tmp_path, limits=Limits(size_bytes=10**9), quants=["q2_k"])
    assert held == [tmp_path / WORK_FOLDER]
    assert left_in(tmp_path) == {"q2_k", SELECTION_FILE}


def test_figures_of_other_types_stay(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Limits(kl_nats=1e-9)
    choose(model, tmp_path, limits=none, quants=["q8_0", "q4_0"])
    assert list((tmp_path / WORK_FOLDER).rglob("*.f32"))
    monkeypatch.setattr(flow.choose_quant, "KEEP_LOGITS_BYTES", 0)
    choose(model, tmp_path, limits=none, quants=["q2_k"])
    assert not list((tmp_path / WORK_FOLDER).rglob("*.f32"))
    made: list[str] = []

    def counts(*given: Any, **settings: Any) -> list[Artifact]:
        made.append(settings["quants"][0])
        return export_gguf(*given, **settings)

    monkeypatch.setattr(flow.quant_bench, "export_gguf", counts)
    choose(model, tmp_path, limits=Limits(kl_nats=9.0), quants=["q8_0", "q4_0"])
    assert made == ["q4_0"], "only to be kept: all was known"


def test_nothing_passes_then_looser_limits(tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path / "valid.jsonl", examples(20))
    command = ["gguf", str(model.path), "--out", str(tmp_path / "out"), "--auto", "--quant", "q8_0,q4_0"]
    command += ["--data", str(tmp_path / "valid.jsonl"), "--threads", "1"]
    runner = CliRunner(catch_exceptions=False)
    refused = runner.invoke(exporting, [*command, "--max-kl", "1e-9"])
    assert refused.exit_code == 1
    assert "none of the types is within the limits" in refused.stdout
    assert "no: --max-kl, gold; --max-kl, greedy" in refused.stdout
    assert left_in(tmp_path / "out") == {SELECTION_FILE, WORK_FOLDER}
    assert json.loads((tmp_path / "out" / SELECTION_FILE).read_text())["winner"] is None

    made: list[str] = []

    def counts(*given: Any, **settings: Any) -> list[Artifact]:
        made.append(settings["quants"][0])
        return export_gguf(*given, **settings)

    monkeypatch.setattr(flow.quant_bench, "export_gguf", counts)
    kept = runner.invoke(exporting, [*command, "--max-kl", "9", "--json"])
    assert kept.exit_code == 0, kept.output
    told = json.loads(kept.stdout)
    assert (told["winner"], told["artifact"]["details"]["quant"]) == ("q4_0", "q4_0")
    assert made == ["q4_0"], "only to be kept: all was known"
    assert left_in(tmp_path / "out") == {SELECTION_FILE, "q4_0"}
