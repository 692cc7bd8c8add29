"""A disk that is full, full in the middle, or read-only: one message, nothing lost, and a re-run goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import evalsuite.evaluate
import evalsuite.kept
import evalsuite.walk
from contract.artifact import Artifact, new_artifact, open_artifact
from contract.errors import AssayError
from contract.history import Evaluation, known_history, standing
from contract.limits import GatePart
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from evalsuite.kept import Kept
from evalsuite.rejudge import rejudge
from evalsuite.results import read_results
from runtimes import load_runtime
from tests.evalsuite.chain import examples
from tests.evalsuite.quick import figures_only
from tests.kit.verdicts import basis, evaluation, write_verdicts
from tests.tiny import make_llama

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    figures_only(monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    tmp = tmp_path_factory.mktemp("disk")
    return [open_artifact(make_llama(tmp / f"seed-{seed}", seed=seed)) for seed in (1, 2)]


@pytest.fixture
def disk(disk_of: Callable[[int], Path]) -> Path:
    """A small file system of its own."""
    return disk_of(24)


def run(models: list[Artifact], out: Path) -> None:
    evaluate(models[1:], examples(3), out, reference=models[0], threads=1, speed=False)


def fill(disk: Path) -> Path:
    """Write until nothing more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return ballast


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models are loaded, by their folder's name, in order."""
    seen: list[str] = []

    def load(artifact: Artifact, **settings: object) -> object:
        seen.append(artifact.name)
        return load_runtime(artifact, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(evalsuite.walk, "load_runtime", load)
    return seen


def at_the_second_model(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    load = evalsuite.walk.load_runtime

    def loading(artifact: Artifact, **settings: object) -> object:
        if artifact.name == "seed-2":
            happens()
        return load(artifact, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(evalsuite.walk, "load_runtime", loading)


def before_judging(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    judge = evalsuite.kept.judge

    def judging(*given: object) -> object:
        happens()
        return judge(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(evalsuite.kept, "judge", judging)


@pytest.mark.parametrize(("when", "left"), [(at_the_second_model, ["seed-2"]), (before_judging, [])])
def test_a_disk_that_fills_up_midway(
    when: Callable[[pytest.MonkeyPatch, Callable[[], object]], None],
    left: list[str],
    models: list[Artifact],
    disk: Path,
    loads: list[str],
    tmp_path: Path,
) -> None:
    out = disk / "eval"
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda: fill(disk))
        with pytest.raises(AssayError, match="the evaluation could not be written") as raised:
            run(models, out)
    assert raised.value.exit_code == 2
    assert "No space left on device" in str(raised.value)
    assert "run it again: what was measured so far is kept" in str(raised.value)
    assert not list(disk.rglob("*partial*"))
    assert not (out / "metrics.json").exists()
    (disk / "ballast").unlink()
    loads.clear()
    run(models, out)
    assert loads == left
    run(models, tmp_path / "at once")
    resumed, at_once = read_results(out), read_results(tmp_path / "at once")
    assert [asdict(row) for row in resumed.rows] == [asdict(row) for row in at_once.rows]


def test_an_earlier_evaluation_outlives_a_full_disk(models: list[Artifact], disk: Path) -> None:
    run(models, disk / "eval")
    before = files(disk / "eval")
    ballast = fill(disk)
    for again in (lambda: run(models, disk / "eval"), lambda: rejudge(disk / "eval", GatePart())):
        with pytest.raises(AssayError, match="could not be written"):
            again()
        assert files(disk / "eval") == before
    ballast.unlink()
    rejudge(disk / "eval", GatePart())
    assert files(disk / "eval").keys() == before.keys()


def test_where_no_verdict_can_be_written_no_old_pass_is_left_standing(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_artifact(disk / "made", "gguf", "made") as draft:
        (draft.path / "made.gguf").write_bytes(b"GGUF")
    artifact = draft.finished
    judged = evaluation(Verdict("q8_0", artifact.digest, "fail", ()))
    ballast = fill(disk)
    Kept(tmp_path, [artifact]).begin(
        replace(judged, verdicts=(), finished=False)
    )  # nothing stands there to be replaced
    Kept(tmp_path, [artifact]).finish(judged)
    assert "no verdict beside" in capsys.readouterr().err
    ballast.unlink()
    write_verdicts(artifact.verdict_path, [Verdict("q8_0", artifact.digest, "pass", ())])
    fill(disk)
    with pytest.raises(AssayError, match="an old pass would stand"):
        Kept(tmp_path, [artifact]).begin(replace(judged, verdicts=(), finished=False))


def test_one_that_cannot_be_noted_leaves_the_others_as_they_were(disk: Path, tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path, disk):
        with new_artifact(folder / "made", "gguf", "made") as draft:
            (draft.path / f"{len(made)}.gguf").write_bytes(b"GGUF")
        made.append(draft.finished)
        write_verdicts(made[-1].verdict_path, [Verdict("q8_0", made[-1].digest, "pass", ())])
    begun = Evaluation(basis(25), tuple(artifact.digest for artifact in made))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        with pytest.raises(AssayError, match="an old pass would stand"):
            Kept(tmp_path, made).begin(begun)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert [standing(known_history(one.verdict_path), one.digest).state for one in made] == ["pass", "pass"]  # type: ignore[union-attr]


def test_a_read_only_disk(models: list[Artifact], disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(models, disk / "eval")
    before = files(disk / "eval")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        for out in (disk / "eval", disk / "new", disk / "deep" / "new"):
            with pytest.raises(AssayError, match="cannot be written"):
                run(models, out)
        monkeypatch.setattr(os, "access", lambda *given: True)  # it was found writable, and then was not
        for out in (disk / "eval", disk / "new"):
            with pytest.raises(AssayError, match="written") as raised:
                run(models, out)
            assert "Read-only file system" in str(raised.value)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert files(disk / "eval") == before


def test_other_errors_of_the_system_are_not_called_a_full_disk(
    models: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_second_model(monkeypatch, lambda: (tmp_path / "elsewhere" / "gone").read_bytes())
    with pytest.raises(FileNotFoundError):
        run(models, tmp_path / "eval")
