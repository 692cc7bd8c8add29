"""Writing a small file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


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
