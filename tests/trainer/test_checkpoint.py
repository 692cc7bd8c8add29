"""Checkpoints that say something unexpected are one message, and two trainings do not share a work folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import AssayError
from trainer.checkpoint import LOG_FILE, MARKER_FILE, at_work, complete_checkpoints, prepare, seal

pytestmark = pytest.mark.engine


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        seal(folder, step, 1.5, {"recipe": "r"}, [{"step": step, "loss": 2.0}])
    return tmp_path


def test_what_was_sealed_is_found(work: Path) -> None:
    found = complete_checkpoints(work)
    assert [(one.step, one.validation_loss, one.fingerprint) for one in found] == [
        (2, 1.5, {"recipe": "r"}),
        (4, 1.5, {"recipe": "r"}),
    ]
    assert found[-1].log() == [{"step": 4, "loss": 2.0}]
    assert prepare(work, {"recipe": "r"}, resume=True) == found[-1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        "[" * 200_000,
        '{"step": 4, "validation_loss": 1.5}',
        '{"step": "4", "validation_loss": 1.5, "fingerprint": {}}',
        '{"step": 4, "validation_loss": null, "fingerprint": {}}',
        '{"step": true, "validation_loss": 1.5, "fingerprint": {}}',
        '{"step": 4, "validation_loss": 1.5, "fingerprint": "recipe"}',
    ],
)
def test_a_marker_that_says_something_else_is_one_message(work: Path, text: str) -> None:
    (work / "checkpoint-4" / MARKER_FILE).write_text(text)
    with pytest.raises(AssayError, match="cannot be read") as refusal:
        prepare(work, {"recipe": "r"}, resume=True)
    assert refusal.value.exit_code == 2
    assert f"rm -r {work / 'checkpoint-4'}" in str(refusal.value)
    assert (work / "checkpoint-4").is_dir()  # nothing that was trained is thrown away unasked


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        _folder_instead,
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("3"),
    ],
)
def test_so_is_a_log_that_cannot_be_read(work: Path, damage: Callable[[Path], Any]) -> None:
    damage(work / "checkpoint-4" / LOG_FILE)
    with pytest.raises(AssayError, match="cannot be read"):
        complete_checkpoints(work)[-1].log()


def test_a_second_training_does_not_work_in_the_same_folder(tmp_path: Path) -> None:
    work = tmp_path / ".adapter.training"
    with at_work(work), pytest.raises(AssayError, match="another training") as refusal, at_work(work):
        pass
    assert refusal.value.exit_code == 2
    with at_work(work):
        assert prepare(work, {}, resume=False) is None
