"""Exit codes and messages at the front door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]


def assay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "assay", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["sumarize", "x"],
        ["run"],
        ["run", "no-such.yaml"],
        ["inspect", "no-such-folder"],
        ["gate", "no-such-folder"],
        ["verify", "no-such-bundle"],
        ["export", "gguf", "no-such", "--out", "x"],
        ["merge", "no-such", "--out", "x"],
        ["import", "no-such.gguf", "--out", "x"],
    ],
)
def test_bad_input_is_one_message_and_exit_2(arguments: list[str]) -> None:
    done = assay(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.strip()


def test_a_mistyped_command_is_guessed() -> None:
    assert 'did you mean "summarize"?' in assay("sumarize").stderr


def test_a_defect_is_exit_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import assay as door
    import flow.inspect_artifact as room

    def broken(path: Path) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(room, "describe", broken)
    monkeypatch.setattr(sys, "argv", ["assay", "inspect", "x"])
    with pytest.raises(SystemExit) as end:
        door.main()
    assert end.value.code == 3
    assert "a defect in Assay" in capsys.readouterr().err


def test_inspect_sees_a_flipped_byte(tmp_path: Path) -> None:
    from contract.artifact import new_artifact

    with new_artifact(tmp_path / "a", "merged", "a") as draft:
        (draft.path / "config.json").write_text('{"x": 1}')
    assert assay("inspect", str(tmp_path / "a")).returncode == 0
    (tmp_path / "a" / "config.json").write_text('{"x": 2}')
    done = assay("inspect", str(tmp_path / "a"))
    assert done.returncode == 2
    assert "config.json: its bytes were changed" in done.stdout


def test_an_output_that_cannot_be_is_one_message(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments in (
        ["run", "recipes/tiny.yaml", "--out", str(tmp_path / "file")],
        ["run", "recipes/tiny.yaml", "--out", str(tmp_path / "file" / "x")],
        ["export", "gguf", str(llama_folder), "--out", str(tmp_path / "file")],
        ["export", "gguf", str(llama_folder), "--out", str(tmp_path / "out"), "--name", "../../escaped"],
    ):
        done = assay(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_inspect_goes_on_where_a_parent_is_no_longer_a_model(tmp_path: Path) -> None:
    from contract.artifact import Parent, new_artifact

    (tmp_path / "empty").mkdir()
    with new_artifact(
        tmp_path / "a", "merged", "a", parents=[Parent("base", str(tmp_path / "empty"), "0" * 64)]
    ) as draft:
        (draft.path / "config.json").write_text("{}")
    done = assay("inspect", str(tmp_path / "a"))
    assert done.returncode == 0
    assert "no longer a model" in done.stdout
