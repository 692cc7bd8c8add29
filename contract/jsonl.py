"""Reading JSON Lines: one object per line, each with where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.errors import AssayError


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with its place, "FILE:LINE"; a byte order mark, CRLF and blank lines are passed over.

    Raises:
        AssayError: a line is not UTF-8, not JSON or not an object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise AssayError("the file is not UTF-8", where=where, got=str(error)) from None
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise AssayError("a line is not JSON", where=where, got=str(error)) from None
            if not isinstance(row, dict):
                raise AssayError("a line is not a JSON object", where=where, got=type(row).__name__)
            yield where, row
