"""Failure buckets: what plainly went wrong with one summary, if anything. It may be in several, or in none.

Each is a rule with a threshold, made to be looked at in examples, not a judgement of quality. A reference that does
the same thing (repeats, copies, leaves out the full stop) excuses the prediction.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterator, Sequence

from contract.errors import AssayError
from evalsuite.metrics.faithful import invented_names, invented_numbers
from evalsuite.metrics.language import wrong_language
from evalsuite.metrics.shape import copied_share, repetition
from evalsuite.metrics.text import words

BUCKETS = {
    "empty": "nothing but white space",
    "cut_off": "ended by itself, but in the middle of a sentence",
    "never_stopped": "ran into the token limit instead of ending",
    "loops": "says the same again and again",
    "copies": "word for word from the document, nearly all of it",
    "too_long": "more than twice as long as the longest reference",
    "too_short": "less than half as long as the shortest reference",
    "invented_number": "a number that neither the document nor a reference has",
    "invented_name": "a name that neither the document nor a reference has",
    "wrong_language": "another script or language than the references",
}

LOOP_REPETITION = 0.3  # of the 4-grams; people's summaries stay under 0.1 (a name and a verb that come twice)
_CHARACTER_LOOP = re.compile(r"(\S.{0,19}?)\1{7,}", re.DOTALL)  # eight times in a row, spaces or not …
LOOP_CHARACTERS = 20  # … over at least so many characters: "hahahaha" and "100000000" are no loops
COPIED_RUN_WORDS = 8  # shorter runs are shared phrases
COPIED_SHARE = 0.8  # of the words, in such runs: a name changed here and there does not hide it
LONGEST_RATIO = 2.0  # two people's summaries of one text seldom differ by more
SHORTEST_RATIO = 0.5
LENGTH_SLACK_WORDS = 5  # of three words against seven nobody would say so
_ENDS = ".!?…。！？؟۔।॥"
_CLOSING = "\"'”’»)]」』*_"


def buckets(
    document: str | None,
    references: Sequence[str],
    prediction: str,
    stop: str | None = None,
    ordinary: Container[str] = frozenset(),
) -> tuple[str, ...]:
    """The names of BUCKETS, in its order, that this prediction belongs to.

    Args:
        document: the text that was summarized; without one copies and inventions cannot be seen.
        references: what people wrote of it, one or more.
        prediction: the summary.
        stop: why generation ended, "eos" or "length"; None where nobody knows.
        ordinary: words that begin sentences without being names (`evalsuite.metrics.faithful.ordinary_words`).

    Raises:
        AssayError: there is no reference.
    """
    if not references:
        raise AssayError("an example without a reference has no failure buckets")
    found = set(_found(document, references, prediction.strip(), stop, ordinary))
    return tuple(name for name in BUCKETS if name in found)


def _found(
    document: str | None, references: Sequence[str], prediction: str, stop: str | None, ordinary: Container[str]
) -> Iterator[str]:
    if stop == "length":
        yield "never_stopped"
    if not prediction:
        yield "empty"
        return
    if stop != "length" and not _ends_sentence(prediction) and all(_ends_sentence(text) for text in references):
        yield "cut_off"
    if _loops(prediction) and not any(_loops(text) for text in references):
        yield "loops"
    yield from _length(references, len(words(prediction)))
    if document is not None:
        if _copies(document, prediction) and not any(_copies(document, text) for text in references):
            yield "copies"
        if invented_numbers(document, prediction, references):
            yield "invented_number"
        if invented_names(document, prediction, references, ordinary):
            yield "invented_name"
    if wrong_language(references, prediction):
        yield "wrong_language"


def _ends_sentence(text: str) -> bool:
    """Ends with a full stop or its like, or a symbol (an emoji), closing quotes and marks of emphasis aside."""
    last = text.rstrip().rstrip(_CLOSING)[-1:]
    return bool(last) and (last in _ENDS or unicodedata.category(last)[0] == "S")


def _loops(text: str) -> bool:
    return repetition(text) >= LOOP_REPETITION or any(
        len(match.group()) >= LOOP_CHARACTERS for match in _CHARACTER_LOOP.finditer(text)
    )


def _length(references: Sequence[str], count: int) -> Iterator[str]:
    lengths = [len(words(text)) for text in references]
    if count > LONGEST_RATIO * max(lengths) and count - max(lengths) >= LENGTH_SLACK_WORDS:
        yield "too_long"
    if count < SHORTEST_RATIO * min(lengths) and min(lengths) - count >= LENGTH_SLACK_WORDS:
        yield "too_short"


def _copies(document: str, text: str) -> bool:
    return copied_share(document, text, COPIED_RUN_WORDS) >= COPIED_SHARE
