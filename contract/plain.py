"""Text from elsewhere, made harmless for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text with everything that does not print (control codes, line ends, turned directions) as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
