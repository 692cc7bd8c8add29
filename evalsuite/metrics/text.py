"""ROUGE on the 0-100 scale, with our own sentence split and Unicode words, and the lead-3 baseline.

ROUGE comes from the rouge_score package (F1, Porter's stemmer unless told otherwise). Two things are ours: rouge_score
drops every letter outside a-z, so words are found by Unicode category instead (on ASCII text both agree to the last
digit), and rougeLsum needs sentences on lines of their own, which it otherwise never gets. With several references the
best one counts, for each metric by itself; `rouge_mean` takes their mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
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
# An end is a run of terminators with closing quotes; those of unspaced scripts need no space behind them.
_END = re.compile(rf"[。！？។៕။]+[{_CLOSING}]*|[.!?…؟।]+[{_CLOSING}]*(?=\s|$)")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]+$")
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))
_BEHIND = re.compile(r"\s*[\"'“‘«(\[]*")
# Scripts without spaces between words: Thai and Lao, Burmese and its extensions, Khmer, kana of either width, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u9fff\U00020000-\U0003ffff]"
)
# Letters that belong to the consonant before them, as marks do: a, aa, am of Thai and Lao; half-width voicing.
_BEHIND_A_CONSONANT = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u0ebd\uff9e\uff9f")
# What belongs to the consonant after it: e, ae, o, ai of Thai and Lao; the signs that stack Khmer and Burmese letters.
_BEFORE_A_CONSONANT = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039")


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
    next_word = _BEHIND.match(line, match.end())
    behind = line[next_word.end() : next_word.end() + 1] if next_word else ""
    if behind.islower():
        return False
    if match.group().rstrip("\"'”’»)]") != ".":
        return True
    word = _LAST_WORD.search(line[max(0, match.start() - _LONGEST_ABBREVIATION - 1) : match.start()])
    last = word.group() if word else ""
    return bool(behind == "" or not (last.lower() in _ABBREVIATIONS or (len(last) == 1 and last.isupper())))


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters, marks and digits in any script.

    Where a script puts no space between words, its smallest parts count: each Han or kana character, and each cluster
    of Thai, Lao, Khmer or Burmese, which is a consonant with the vowels, tones and stacked consonants around it (an
    extended grapheme cluster of Unicode Annex 29, with the Thai and Lao vowels that Unicode counts as letters).
    """
    text = unicodedata.normalize("NFC", text).lower()
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text)
    found: list[str] = []
    inside = unspaced = awaits = False
    for character in text:
        category = unicodedata.category(character)
        if category[0] not in "LMN":
            inside = awaits = False
            continue
        leans = inside and (category[0] == "M" or character in _BEHIND_A_CONSONANT)
        part = category != "Nd" and _UNSPACED.match(character) is not None
        if leans or awaits or (inside and not part and not unspaced):
            found[-1] += character
        else:
            found.append(character)
        inside, awaits = True, character in _BEFORE_A_CONSONANT
        unspaced = unspaced if leans else part
    return found


@lru_cache(maxsize=1)
def _stem_rules() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
    except ImportError:
        raise _no_packages("nltk") from None
    rules: Callable[[str], str] = PorterStemmer().stem
    return rules


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case English word (Porter 1980, in NLTK's default variant, which rouge_score uses)."""
    return _stem_rules()(word)


def rouge_words(text: str, *, stemming: bool = True) -> list[str]:
    """What ROUGE counts: `words`, and with `stemming` the stem of the ASCII ones of more than three letters."""
    return [stem(word) if stemming and len(word) > 3 and word.isascii() else word for word in words(text)]


@dataclass(frozen=True)
class _Tokenizer:
    """In the form that rouge_score asks for."""

    stemming: bool

    def tokenize(self, text: str) -> list[str]:
        return rouge_words(text, stemming=self.stemming)


@lru_cache(maxsize=2)
def _scorer(stemming: bool) -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _no_packages("rouge_score") from None
    return RougeScorer(list(METRICS), tokenizer=_Tokenizer(stemming))


def _no_packages(name: str) -> AssayError:
    return AssayError(f"scoring needs {name}", hint="in Assay's checkout: pip install -e '.[eval]'")


def rouge(references: Sequence[str], prediction: str, *, stemming: bool = True) -> dict[str, float]:
    """F1 x 100 per metric of METRICS; over several references the maximum, per metric.

    Raises:
        AssayError: there is no reference.
    """
    return _over_references(max, references, prediction, stemming)


def rouge_mean(references: Sequence[str], prediction: str, *, stemming: bool = True) -> dict[str, float]:
    """As `rouge`, but over several references the mean: how well all of them are met, not the nearest.

    Raises:
        AssayError: there is no reference.
    """
    return _over_references(fmean, references, prediction, stemming)


def _over_references(
    combine: Callable[[list[float]], float], references: Sequence[str], prediction: str, stemming: bool
) -> dict[str, float]:
    if not references:
        raise AssayError("an example without a reference cannot be scored")
    found = [_rouge(reference, prediction, stemming) for reference in references]
    return {metric: combine([scores[index] for scores in found]) for index, metric in enumerate(METRICS)}


@lru_cache(maxsize=1 << 14)
def _rouge(reference: str, prediction: str, stemming: bool) -> tuple[float, ...]:
    """In the order of METRICS. Cached: rows, differences and several artifacts ask for the same."""
    scores = _scorer(stemming).score("\n".join(sentences(reference)), "\n".join(sentences(prediction)))
    return tuple(100 * scores[metric].fmeasure for metric in METRICS)


def lead_3(document: str) -> str:
    """The first three sentences (a dialogue's lines end sentences too), one per line."""
    return "\n".join(sentences(document)[:3])
