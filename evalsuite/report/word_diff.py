"""Which words of one summary are not in another: for showing them side by side."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Span:
    """A run of words (white space between them kept): in both, only in this text, or only in the reference."""

    text: str
    kind: Literal["same", "added", "missing"]

    @property
    def lead(self) -> str:
        """The white space in front, which is not marked."""
        return self.text[: len(self.text) - len(self.text.lstrip())]

    @property
    def body(self) -> str:
        """The rest."""
        return self.text.lstrip()


def word_diff(reference: str, text: str) -> list[Span]:
    """`text` as spans; the spans that are not "missing", joined, are `text` unchanged."""
    theirs, ours = _words(reference), _words(text)
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in theirs], [word.strip() for word in ours], autojunk=False
    )
    spans: list[Span] = []
    for tag, their_start, their_end, our_start, our_end in matcher.get_opcodes():
        same = tag == "equal"
        if not same and their_end > their_start:
            spans.append(Span("".join(theirs[their_start:their_end]), "missing"))
        if our_end > our_start:
            spans.append(Span("".join(ours[our_start:our_end]), "same" if same else "added"))
    return spans


def _words(text: str) -> list[str]:
    """Words with the white space in front of them; trailing white space is a word of its own."""
    return re.findall(r"\s*\S+|\s+", text)
