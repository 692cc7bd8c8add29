"""The one exception meant for users, and how it reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """The user's input or machine is at fault. Only the front door catches it, and exits with code 2.

    Args:
        what: one sentence that says what is wrong.
        where: the file, line, field or tensor it concerns.
        expected: what should have been there.
        got: what was there.
        hint: what to do or type next.
    """

    exit_code = 2  # a gate's refusal overrides it with 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.hint = what, where, expected, got, hint
        lines = [what]
        lines += [
            f"  {name}: {value}"
            for name, value in (("where", where), ("expected", expected), ("got", got), ("try", hint))
            if value
        ]
        super().__init__("\n".join(lines))


class NoEngineError(AssayError):
    """Nothing here runs or reads this kind of artifact. It says nothing against the artifact itself."""


class CannotLoadError(AssayError):
    """The engine runs here, and does not load this file."""


class ModelError(AssayError):
    """The model that was loaded fails at what it was rightly asked."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word` as a question, or None where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else None


def listed(items: Iterable[str], most: int = 8) -> str:
    """A list for a message: the first `most` items, then how many more there are."""
    items = list(items)
    tail = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + tail
