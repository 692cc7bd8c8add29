"""Writing a small file whole or not at all, and working in a folder alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.errors import AssayError


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write `text` as UTF-8 beside `path`, then rename: a reader sees the old file or the new one, never half of it.

    Args:
        path: the file; its folder exists.
        text: all of it.
        errors: what to do with text that has no UTF-8 form, as in str.encode.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors=errors)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, refusal: AssayError) -> Iterator[None]:
    """Hold the lock file, which is made where it is missing; `refusal` is raised where another process holds it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
