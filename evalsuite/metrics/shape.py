"""What a summary looks like beside its document and reference: length, novelty, copying, repetition.

Words are those of `evalsuite.metrics.text.words`: lower-case, any script, no stemming. A share is 0 where there is
nothing to take a share of (a text with fewer than n words has no n-gram).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from contract.errors import AssayError
from evalsuite.metrics.text import words

NOVELTY_ORDERS = (1, 2, 3)
REPETITION_ORDER = 4


@lru_cache(maxsize=64)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def _ngrams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[at : at + n]) for at in range(len(found) - n + 1)]


def length_ratio(references: Sequence[str], prediction: str) -> float:
    """Words of the prediction per word of the first reference; one without any word counts as one word.

    Raises:
        AssayError: there is no reference.
    """
    if not references:
        raise AssayError("a length ratio needs a reference")
    return len(_words(prediction)) / max(1, len(_words(references[0])))


def novelty(document: str, prediction: str, n: int) -> float:
    """The share (0 to 1) of the prediction's n-grams that the document does not have, each occurrence counted.

    See et al. 2017, "Get To The Point", section 6; Narayan et al. 2018, "Don't Give Me the Details", table 1.
    """
    ours = _ngrams(_words(prediction), n)
    theirs = set(_ngrams(_words(document), n))
    return sum(gram not in theirs for gram in ours) / len(ours) if ours else 0.0


@lru_cache(maxsize=64)
def fragments(document: str, prediction: str) -> tuple[int, ...]:
    """Lengths in words of the extractive fragments, in order: from the left, each time the longest run of words
    that the document has too (Grusky et al. 2018, "Newsroom", figure 3)."""
    source, text = _words(document), _words(prediction)
    positions: dict[str, list[int]] = {}
    for at, word in enumerate(source):
        positions.setdefault(word, []).append(at)
    found = []
    start = 0
    while start < len(text):
        longest = max((_run(source, at, text, start) for at in positions.get(text[start], ())), default=0)
        if longest:
            found.append(longest)
        start += max(1, longest)
    return tuple(found)


def _run(source: Sequence[str], at: int, text: Sequence[str], start: int) -> int:
    length = 0
    while at + length < len(source) and start + length < len(text) and source[at + length] == text[start + length]:
        length += 1
    return length


def coverage(document: str, prediction: str) -> float:
    """The share (0 to 1) of the prediction's words that stand in an extractive fragment (Grusky et al. 2018)."""
    return sum(fragments(document, prediction)) / max(1, len(_words(prediction)))


def density(document: str, prediction: str) -> float:
    """The mean length in words of the extractive fragment that a word of the prediction stands in (Grusky et al.)."""
    return sum(length**2 for length in fragments(document, prediction)) / max(1, len(_words(prediction)))


def copied_share(document: str, prediction: str, fewest: int) -> float:
    """The share (0 to 1) of the prediction's words in extractive fragments of at least `fewest` words."""
    copied = sum(length for length in fragments(document, prediction) if length >= fewest)
    return copied / max(1, len(_words(prediction)))


def repetition(prediction: str, n: int = REPETITION_ORDER) -> float:
    """The share (0 to 1) of n-grams that repeat an earlier one: seq-rep-n of Welleck et al. 2020, on words.

    "Neural Text Generation With Unlikelihood Training", section 6.
    """
    found = _ngrams(_words(prediction), n)
    return 1 - len(set(found)) / len(found) if found else 0.0
