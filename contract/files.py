"""Writing a small file whole or not at all, reading it if it is of this version, and working in a folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from contract import locks
from contract.drafts import flush_to_disk, partial_of, sync_path
from contract.errors import AssayError

Read = TypeVar("Read")


def write_whole(path: Path, text: str, *, errors: str = "strict", durable: bool = True) -> None:
    """Write `text` as UTF-8 beside `path`, then rename: a reader sees the old file or the new one, never half of it.

    Args:
        path: the file; its folder exists.
        text: all of it.
        errors: what to do with text that has no UTF-8 form, as in str.encode.
        durable: have it on the disk before this returns, so that a power cut leaves the old file or the new one too,
            and never brings back what was replaced. Some 16 ms on a disk; spared for what can be lost.
    """
    partial = partial_of(path)
    try:
        with partial.open("w", encoding="utf-8", errors=errors) as file:
            file.write(text)
            if durable:
                file.flush()
                flush_to_disk(file.fileno())
        partial.replace(path)
        if durable:
            sync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def read_versioned(path: Path, name: str, schema: int, build: Callable[[dict[str, Any]], Read]) -> Read:
    """What `build` makes of the JSON object in a file of `assay eval`.

    Args:
        path: the file.
        name: what it is called in messages.
        schema: the one number its "schema" may be.
        build: may raise ValueError, KeyError or TypeError where the object is not what it should be.

    Raises:
        AssayError: there is no such file, or it is of another version or damaged.
    """
    if not path.is_file():
        raise AssayError(f"there is no {name}", where=str(path), hint="run assay eval first")
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
        if data["schema"] == schema:
            return build(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AssayError(
            f"the {name} cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            hint="run assay eval again",
        ) from None
    raise AssayError(
        f"the {name} is of another version",
        where=str(path),
        got=str(data["schema"]),
        expected=str(schema),
        hint="run assay eval again",
    )


def refuse_constant(text: str) -> None:
    """For `json.loads`: NaN and infinities are no JSON."""
    raise ValueError(f"{text} is not a number")


@contextmanager
def alone(lock: Path, refusal: AssayError) -> Iterator[None]:
    """Hold the lock file, which is made where it is missing; `refusal` is raised where another process holds it.

    So it is where the lock's folder is gone: another process has just ended its work there and cleaned up. Where the
    file system keeps no locks, contract/locks.py's error is.
    """
    try:
        opened = lock.open("w", encoding="utf-8")
    except FileNotFoundError:
        raise refusal from None
    with opened as file:
        if not locks.lock(file.fileno(), lock, wait=False):
            raise refusal
        yield
