"""Faithfulness signals: numbers and capitalised names of a prediction that its document does not have.

Signals, not proof: a wrong statement made of the document's own names goes unseen, and a sum, a nickname ("Tom" for
"Thomas") or a paraphrased date counts as invented. What some reference has is never invented. Languages without
capitals have no names here; in those that capitalise every noun, every noun counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache

from evalsuite.metrics.facts import WORD, is_function_word, without_possessive
from evalsuite.metrics.numerals import number_words, numerals, stated
from evalsuite.metrics.text import sentences

# A count of what the document shows ("both friends", "the three of them") is no claim; numbers in digits are.
LARGEST_COUNT = 12
_LIST_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_OPENS_SENTENCE = "\"'“‘«([:"
# What people do: behind an unknown word that begins a sentence, these make it a name ("Kesto asks …").
_PERSON_VERB_LIST = """
    accepts admits advises agrees apologises apologizes asks books buys calls comes complains congratulates decides
    describes explains feels finds forgets gets gives goes hates helps hopes informs invites knows likes lives loves
    meets misses offers orders plans prefers promises recommends refuses remembers reminds reports says sees sends
    suggests takes tells thanks thinks visits wants warns wonders works writes"""
_PERSON_VERBS = frozenset(_PERSON_VERB_LIST.split())
_NEVER_NAME_LIST = """
    everyone everybody someone somebody anyone anybody nobody nothing something everything people others another
    many most several few some neither either such said mr mrs ms miss dr prof sir madam"""
_NEVER_NAMES = frozenset(_NEVER_NAME_LIST.split())


@lru_cache(maxsize=64)
def _numbers_of(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(reading for text in texts for reading in stated(text))


@lru_cache(maxsize=64)
def _words_of(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(part for text in texts for word in WORD.findall(text) for part in _parts(word))


@lru_cache(maxsize=1 << 16)
def _parts(word: str) -> tuple[str, ...]:
    """Its pieces between hyphens and apostrophes, without case and accents."""
    bare = unicodedata.normalize("NFKD", without_possessive(word))
    bare = "".join(character for character in bare if not unicodedata.combining(character))
    return tuple(re.split(r"['’-]", bare.casefold()))


def invented_numbers(document: str, prediction: str, references: Sequence[str] = ()) -> set[str]:
    """The numbers, as the prediction writes them, that neither the document nor a reference states.

    Digits, and number words above LARGEST_COUNT. The same number in another spelling (`evalsuite.metrics.numerals`) is
    the same; an hour is known where the document has a time within it.
    """
    known = _numbers_of((document, *references))
    text = _LIST_NUMBER.sub(" ", prediction)
    large = [n for n in number_words(text) if all(":" in r or float(r) > LARGEST_COUNT for r in n.readings)]
    return {numeral.text for numeral in (*numerals(text), *large) if not numeral.readings & known}


def ordinary_words(texts: Iterable[str]) -> frozenset[str]:
    """The words that stand in lower case somewhere in `texts`: at the beginning of a sentence they are no names."""
    return frozenset(
        part for text in texts for word in WORD.findall(text) if word[0].islower() for part in _parts(word)
    )


def invented_names(
    document: str, prediction: str, references: Sequence[str] = (), ordinary: Container[str] = frozenset()
) -> set[str]:
    """The capitalised words of the prediction that neither the document nor a reference has, in any case.

    Inside a sentence a capital is enough. At its beginning, where every word has one, the word must stand before what
    a name stands before: a possessive, a colon, "and" with another capital, or a verb for what people do. A sentence
    that capitalises everything tells nothing. Each word of a longer name counts by itself.

    Args:
        document: the text that was summarized.
        prediction: the summary.
        references: what people wrote of it.
        ordinary: words, as of `ordinary_words`, that begin a sentence without being names.
    """
    known = _words_of((document, *references))
    found = set()
    for sentence in sentences(prediction):
        matches = list(WORD.finditer(sentence))
        if _capitals_say_nothing([match.group() for match in matches]):
            continue
        for index, match in enumerate(matches):
            word = without_possessive(match.group())
            if not _may_be_name(word) or all(_is_known(part, known) for part in _parts(word)):
                continue
            opens = index == 0 or sentence[: match.start()].rstrip(" ")[-1:] in _OPENS_SENTENCE
            if not opens or (not _is_ordinary(word, ordinary) and _stands_like_a_name(match, sentence)):
                found.add(word)
    return found


def _may_be_name(word: str) -> bool:
    return len(word) > 1 and word[0].isupper() and not is_function_word(word) and word.lower() not in _NEVER_NAMES


def _is_known(part: str, known: Container[str]) -> bool:
    """As it is, or with the other number: "Germans" where the document has "German"."""
    return part in known or part + "s" in known or (part.endswith("s") and part[:-1] in known)


def _is_ordinary(word: str, ordinary: Container[str]) -> bool:
    return any(part in ordinary for part in _parts(word))


def _stands_like_a_name(match: re.Match[str], sentence: str) -> bool:
    if without_possessive(match.group()) != match.group():
        return True
    behind = sentence[match.end() :]
    if behind.startswith(":"):
        return True
    follows = WORD.findall(behind)[:2]
    if not follows or not behind.startswith(" "):
        return False
    return follows[0] in _PERSON_VERBS or (follows[0] == "and" and len(follows) > 1 and _may_be_name(follows[1]))


def _capitals_say_nothing(found: Sequence[str]) -> bool:
    """A headline: three words or more that are no function words, and none of them in lower case."""
    content = [word for word in found if not is_function_word(word)]
    return len(content) > 2 and not any(word[0].islower() for word in content)
