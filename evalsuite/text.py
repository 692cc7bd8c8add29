"""ROUGE on the 0-100 scale, with our own sentence split and Unicode words, and the lead-3 baseline.

ROUGE comes from the rouge_score package (stemmer on, F1). Two things are ours: rouge_score drops every letter outside
a-z, so words are found by Unicode category instead (on ASCII text both agree to the last digit), and rougeLsum needs
sentences on lines of their own, which it otherwise never gets. With several references the best one counts, for each
metric by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from contract.errors import AssayError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_ABBREVIATION_LIST = """
    mr mrs ms dr prof sr jr st mt vs etc e.g i.e cf al inc ltd co corp dept est approx no nr vol fig gen sen rep gov
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri z.b d.h bzw usw ca p.ex m mme mlle"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
_CLOSING = "\"'”’»)\\]」』"
# An end is a run of terminators with closing quotes; ideographic ones need no space behind them.
_END = re.compile(rf"[。！？]+[{_CLOSING}]*|[.!?…؟।]+[{_CLOSING}]*(?=\s|$)")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]+$")


def sentences(text: str) -> list[str]:
    """Split `text` at line ends and at the ends of sentences.

    A full stop does not end one behind a known abbreviation or a single capital letter ("J. Smith"), nor before a word
    that begins in lower case.
    """
    found = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if not _is_end(line, match):
                continue
            found.append(line[start : match.end()].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _is_end(line: str, match: re.Match[str]) -> bool:
    behind = line[match.end() :].lstrip().lstrip("\"'“‘«([")
    if behind[:1].islower():
        return False
    if match.group().rstrip("\"'”’»)]") != ".":
        return True
    word = _LAST_WORD.search(line[: match.start()])
    last = word.group() if word else ""
    return bool(behind == "" or not (last.lower() in _ABBREVIATIONS or (len(last) == 1 and last.isupper())))


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters, marks and digits in any script; Han and kana one character each."""
    text = unicodedata.normalize("NFC", text).lower()
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text)
    found: list[str] = []
    inside = False
    for character in text:
        if unicodedata.category(character)[0] not in "LMN":
            inside = False
        elif _is_word_by_itself(character):
            found.append(character)
            inside = False
        elif inside:
            found[-1] += character
        else:
            found.append(character)
            inside = True
    return found


def _is_word_by_itself(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or character >= "\U00020000"


class _Stemmed:
    """The tokenizer rouge_score asks for: Unicode words, Porter's stem for those of more than three letters."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

        self._stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words(text)]


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise AssayError("scoring needs rouge_score", hint="in Assay's checkout: pip install -e '.[eval]'") from None
    return RougeScorer(list(METRICS), tokenizer=_Stemmed())


def rouge(references: Sequence[str], prediction: str) -> dict[str, float]:
    """F1 x 100 per metric of METRICS; over several references the maximum, per metric.

    Raises:
        AssayError: there is no reference.
    """
    if not references:
        raise AssayError("an example without a reference cannot be scored")
    found = [_rouge(reference, prediction) for reference in references]
    return {metric: max(scores[index] for scores in found) for index, metric in enumerate(METRICS)}


@lru_cache(maxsize=1 << 14)
def _rouge(reference: str, prediction: str) -> tuple[float, ...]:
    """In the order of METRICS. Cached: rows, differences and several artifacts ask for the same."""
    scores = _scorer().score("\n".join(sentences(reference)), "\n".join(sentences(prediction)))
    return tuple(100 * scores[metric].fmeasure for metric in METRICS)


def lead_3(document: str) -> str:
    """The first three sentences (a dialogue's lines end sentences too), one per line."""
    return "\n".join(sentences(document)[:3])
