"""Checkpoints that count: complete ones bear a marker, written last, that says which training they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.drafts import sync_path
from contract.errors import AssayError
from contract.files import alone

MARKER_FILE = "complete.json"
LOG_FILE = "training_log.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. `fingerprint` names what the training was made of; loss in nats per token."""

    path: Path
    step: int
    validation_loss: float
    fingerprint: dict[str, str]

    def log(self) -> list[dict[str, Any]]:
        """The training log up to this step."""
        path = self.path / LOG_FILE
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object")
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from None
        return rows


def work_folder(out: Path) -> Path:
    """Where a training that will write `out` keeps its checkpoints: beside it, hidden."""
    return out.parent / f".{out.name}.training"


@contextmanager
def at_work(work: Path) -> Iterator[None]:
    """Hold the work folder, which is made where it is missing: a second training would remove the first one's files.

    Raises:
        AssayError: another training works there.
    """
    work.mkdir(parents=True, exist_ok=True)
    refusal = AssayError(
        "another training is under way here", where=str(work), hint="wait for it, or give another --out"
    )
    with alone(work / ".lock", refusal):
        yield


def seal(
    folder: Path, step: int, validation_loss: float, fingerprint: dict[str, str], log: list[dict[str, Any]]
) -> None:
    """Make a written checkpoint count: everything to the disk, then the marker, whole or not at all."""
    (folder / LOG_FILE).write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync_path(path)
    partial = folder / f".{MARKER_FILE}"
    partial.write_text(
        json.dumps({"step": step, "validation_loss": validation_loss, "fingerprint": fingerprint}, indent=2),
        encoding="utf-8",
    )
    sync_path(partial)
    partial.rename(folder / MARKER_FILE)
    sync_path(folder)
    sync_path(folder.parent)


def complete_checkpoints(work: Path) -> list[Checkpoint]:
    """The checkpoints with a marker, oldest first. A folder without one was never finished, whatever its number.

    Raises:
        AssayError: a marker says something else than `seal` writes.
    """
    found = [_read(marker) for marker in work.glob(f"checkpoint-*/{MARKER_FILE}")]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read(marker: Path) -> Checkpoint:
    try:
        body = json.loads(marker.read_text(encoding="utf-8"))
        if not isinstance(body, dict) or set(body) != {"step", "validation_loss", "fingerprint"}:
            raise ValueError("it has not a step, a validation_loss and a fingerprint")
        step, loss, fingerprint = body["step"], body["validation_loss"], body["fingerprint"]
        if type(step) is not int or type(loss) not in (int, float) or not isinstance(fingerprint, dict):
            raise ValueError("its step, validation_loss or fingerprint is of another type")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(marker, error) from None
    return Checkpoint(marker.parent, step, loss, fingerprint)


def _unreadable(path: Path, error: Exception) -> AssayError:
    return AssayError(
        "a checkpoint of the unfinished training cannot be read",
        where=str(path),
        got=str(error),
        hint=f"remove that checkpoint, and the training goes on from the one before: rm -r {path.parent}",
    )


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The lowest validation loss; of equals the earliest."""
    return min(checkpoints, key=lambda checkpoint: (checkpoint.validation_loss, checkpoint.step))


def prune(work: Path) -> None:
    """Remove what is not needed any more: all but the newest complete checkpoint and the best."""
    checkpoints = complete_checkpoints(work)
    keep = {checkpoints[-1].path, best_of(checkpoints).path} if checkpoints else set()
    for folder in work.glob("checkpoint-*"):
        if folder not in keep:
            shutil.rmtree(folder)


def prepare(work: Path, fingerprint: dict[str, str], *, resume: bool) -> Checkpoint | None:
    """Make the work folder ready, and find the checkpoint to go on from; half-written ones are removed.

    Raises:
        AssayError: there are complete checkpoints and `resume` was not asked for, or they are of another training.
    """
    checkpoints = complete_checkpoints(work)
    if checkpoints and not resume:
        raise AssayError(
            "an unfinished training is here",
            where=str(work),
            got=f"{checkpoints[-1].step} steps done",
            hint=f"go on with --resume, or discard it: rm -r {work}",
        )
    if checkpoints:
        theirs = checkpoints[-1].fingerprint
        differing = [name for name in sorted({*theirs, *fingerprint}) if theirs.get(name) != fingerprint.get(name)]
        if differing:
            raise AssayError(
                "the unfinished training here is another one",
                where=str(work),
                got=f"{', '.join(differing)} changed since",
                hint=f"restore what changed, or discard it: rm -r {work}",
            )
    work.mkdir(parents=True, exist_ok=True)
    prune(work)
    return checkpoints[-1] if checkpoints else None
