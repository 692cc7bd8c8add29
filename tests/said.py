"""Lines that tests want read: printed when all is over."""

from __future__ import annotations

_lines: dict[str, str] = {}


def say_at_the_end(key: str, line: str) -> None:
    """Print `line` in the closing summary; a later line under the same key takes its place."""
    _lines[key] = line


def said() -> dict[str, str]:
    """What was said, by key."""
    return dict(_lines)


def lines() -> list[str]:
    """What was said, in order."""
    return list(_lines.values())
