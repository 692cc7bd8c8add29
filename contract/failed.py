"""An export that failed its behavioural check: kept under a name that says so, and never opened as an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed

FAILED_FILE = "failed.json"
FAILED_SCHEMA = 1


@dataclass(frozen=True)
class Failure:
    """One thing a check says no to: a code, a sentence, and by how much where that is a number."""

    code: str
    text: str
    figure: float | None = None
    limit: float | None = None


def refuse_failed(path: Path) -> None:
    """Raise where a folder, or a file in it, is what an export set aside because it failed its check."""
    for folder in _folders(path):
        record = _record_in(folder)
        if record is not None:
            raise AssayError(
                "this failed its check when it was exported, so it is no artifact",
                where=str(path),
                got=listed(_reasons(record)) or f"{FAILED_FILE} does not say why",
                hint=f"export it again once that is mended; {folder / FAILED_FILE} has the figures",
            )


def _folders(path: Path) -> Iterable[Path]:
    """The folder that a path is or lies in, and the one it leads to if it is a link."""
    real = path.resolve()
    return dict.fromkeys(folder if folder.is_dir() else folder.parent for folder in (path, real))


def _record_in(folder: Path) -> dict[str, Any] | None:
    """What failed.json says; None where there is none of ours. One that cannot be read is taken for ours."""
    try:
        record = json.loads((folder / FAILED_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(record, dict) and {"schema", "kind", "files", "failures"} <= set(record)
    return record if ours else None


def _reasons(record: dict[str, Any]) -> list[str]:
    failures = record.get("failures")
    found = failures if isinstance(failures, list) else []
    return [str(failure["text"]) for failure in found if isinstance(failure, dict) and "text" in failure]
