"""Names and numbers: which a reference states, and whether a prediction has them.

A number is a run of digits, with single points and commas inside; commas that group thousands do not count.
A name is a word that begins with a capital, is not a function word, and, where it begins a sentence, is a name by
other evidence: it stands capitalised in the document or inside a sentence, and nowhere in lower case. Every word of a
longer name counts by itself. They are looked for in the prediction as whole words, case-sensitive, a possessive 's
taken off. In languages that capitalise all nouns those count as names too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evalsuite.metrics.text import sentences

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_FUNCTION_WORD_LIST = """
    i a an the this that these those he she it we you they him her his hers its our ours your yours their theirs
    them us me my mine who whom whose which what when where why how if then than so as at by for from in into of off
    on onto out over to under up with without and but or nor not no yes is are was were be been being am do does did
    has have had can could may might must shall should will would there here also both each every all any some none
    one two three after before during while because since until though although however meanwhile finally later now
    today tomorrow yesterday ok okay oh well please thanks mr mrs ms dr"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())


@dataclass(frozen=True)
class FactShare:
    """How many of the references' names and numbers the predictions have."""

    right: int
    facts: int

    @property
    def share(self) -> float | None:
        """right / facts, or None where the references state none."""
        return self.right / self.facts if self.facts else None


def _word_list(text: str) -> list[str]:
    return [without_possessive(word) for word in WORD.findall(text)]


def without_possessive(word: str) -> str:
    """ "Olin's" -> "Olin"."""
    return re.sub(r"['’]s$", "", word)


def _numbers(text: str) -> set[str]:
    return {re.sub(r",(?=\d{3}(?!\d))", "", number) for number in _NUMBER.findall(text)}


def is_function_word(word: str) -> bool:
    """Whether its part before an apostrophe is one of English's ("it's", "We")."""
    return re.split(r"['’]", word)[0].lower() in _FUNCTION_WORDS


def facts(reference: str, document: str) -> set[str]:
    """The names and numbers of `reference`; `document` tells names from ordinary words at a sentence's beginning."""
    lists = [_word_list(sentence) for sentence in sentences(reference)]
    inside = {word for words in lists for word in words[1:]}
    seen = inside | set(_word_list(document))
    found = _numbers(reference)
    for words in lists:
        for index, word in enumerate(words):
            if not word[0].isupper() or is_function_word(word):
                continue
            if index > 0 or (word in seen and word.lower() not in seen):
                found.add(word)
    return found


def present(found: set[str], prediction: str) -> int:
    """How many of these facts the prediction has."""
    return len(found & (set(_word_list(prediction)) | _numbers(prediction)))


def facts_right(references: Sequence[Sequence[str]], documents: Sequence[str], predictions: Sequence[str]) -> FactShare:
    """The share right over all documents, each reference's facts counted (a micro average)."""
    right = total = 0
    for texts, document, prediction in zip(references, documents, predictions, strict=True):
        for text in texts:
            found = facts(text, document)
            total += len(found)
            right += present(found, prediction)
    return FactShare(right, total)


def facts_right_shuffled(
    references: Sequence[Sequence[str]], documents: Sequence[str], predictions: Sequence[str]
) -> FactShare:
    """The control: every prediction is held against the next document's references."""
    return facts_right(references, documents, [*predictions[-1:], *predictions[:-1]])
