"""Keeps a draft that failed its check: beside the place it was made for, with a record, without a manifest."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from contract.artifact import Draft, FileRecord, sha256_of
from contract.drafts import sync, sync_path
from contract.failed import FAILED_FILE, FAILED_SCHEMA, Failure
from contract.files import write_whole


def set_aside(draft: Draft, failures: Sequence[Failure]) -> Path:
    """Move a draft to NAME.failed, or NAME.failed-2 and so on where something is there: nothing is overwritten.

    Killed at any moment there is all of it or none. The very files that failed there before are not kept twice; only
    their record is written again.

    Args:
        draft: with its details and measurements; the `with` block it comes from must end by an error.
        failures: what the check said no to.

    Returns:
        The folder.
    """
    for path in draft.path.iterdir():
        if path.name.startswith("."):  # what the export worked with
            shutil.rmtree(path)
    files = draft.files()
    record = {
        "schema": FAILED_SCHEMA,
        "kind": draft.kind,
        "name": draft.name,
        "failures": [asdict(failure) | {"text": failure.text.replace(f"{draft.path}/", "")} for failure in failures],
        "files": [asdict(file) for file in files],
        "details": draft.details,
        "measurements": draft.measurements,
    }
    text = json.dumps(_finite(record), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for aside in _names(draft.place):
        if not os.path.lexists(aside):
            (draft.path / FAILED_FILE).write_text(text, encoding="utf-8")
            sync(draft.path)
            draft.path.rename(aside)
            sync_path(aside.parent)
            return aside
        if (aside / FAILED_FILE).is_file() and all(_is_there(aside, file) for file in files):
            write_whole(aside / FAILED_FILE, text)
            return aside
    raise AssertionError("there is always another number")


def _names(place: Path) -> Iterator[Path]:
    yield place.with_name(f"{place.name}.failed")
    for number in count(2):
        yield place.with_name(f"{place.name}.failed-{number}")


def _is_there(folder: Path, file: FileRecord) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes and sha256_of(path) == file.sha256


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON lacks; the failure's sentence tells them."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
