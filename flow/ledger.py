"""What a run has finished: which stage, from what, with which digest; and where stale outputs go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.files import alone, write_whole

_FILE = "stages.json"
_PREVIOUS = "previous"


class Ledger:
    """The stages of one run folder. A stage is valid while its key and its artifact's digest are what was noted."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._path = run / _FILE
        self._stages: dict[str, dict[str, str]]
        try:
            self._stages = _stages(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            self._stages = {}
        except (OSError, ValueError, RecursionError) as error:
            raise AssayError(
                "the run's list of stages cannot be read",
                where=str(self._path),
                got=str(error),
                hint="remove that file; what is done is then done again",
            ) from None

    def valid(self, stage: str, key: str) -> Artifact | None:
        """The stage's artifact if it was made from `key` and every byte is as it was written, else None."""
        noted = self._stages.get(stage)
        if noted is None or noted["key"] != key or not (self.run / stage).exists():
            return None
        try:
            artifact = open_artifact(self.run / stage, verify=True)
        except AssayError:
            return None
        # the digest that was noted of an older manifest was that of its files
        known = {artifact.digest} | ({artifact.manifest.files_digest} if artifact.manifest.schema == 1 else set())
        return artifact if noted["digest"] in known else None

    def noted(self, stage: str, key: str, digest: str) -> bool:
        """Was `stage` finished with this key and digest?"""
        return self._stages.get(stage) == {"key": key, "digest": digest}

    def note(self, stage: str, key: str, digest: str) -> None:
        """Remember that a stage is done; written whole or not at all."""
        self._stages[stage] = {"key": key, "digest": digest}
        write_whole(self._path, json.dumps(self._stages, indent=2, sort_keys=True) + "\n")

    def set_aside(self, stage: str) -> Path | None:
        """Move what lies where `stage` will be written into previous/, so that nothing is overwritten."""
        current = self.run / stage
        if not current.exists():
            return None
        number = 1
        while (aside := self.run / _PREVIOUS / f"{stage.replace('/', '-')}-{number}").exists():
            number += 1
        aside.parent.mkdir(parents=True, exist_ok=True)
        current.rename(aside)
        return aside


def is_run(folder: Path) -> bool:
    """Has a run worked in this folder?"""
    return (folder / _FILE).is_file()


def _stages(value: Any) -> dict[str, dict[str, str]]:
    """What the file says, if it is what `Ledger.note` writes; ValueError where it is anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object of stages")
    for stage, noted in value.items():
        if not isinstance(noted, dict) or set(noted) != {"key", "digest"}:
            raise ValueError(f"stage {stage!r} has not a key and a digest")
        if not all(isinstance(text, str) for text in noted.values()):
            raise ValueError(f"stage {stage!r}: key and digest are not both texts")
    return value


def key_of(**parts: Any) -> str:
    """A stage's key: the sha256 of everything it depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder; a second run of the same folder is refused rather than mixed in."""
    run.mkdir(parents=True, exist_ok=True)
    refusal = AssayError(
        "another run is working in this folder", where=str(run), hint="wait for it, or give another --out"
    )
    with alone(run / ".lock", refusal):
        yield
