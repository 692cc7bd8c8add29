"""Makes the names, places and numbers of one split; no two splits ever share one.

A word or number belongs to the split its hash says, so the universe needs no list and any size of corpus
can be drawn from one split without touching the others.
"""

import hashlib
import random
import re

SPLITS = ("train", "valid", "test")

_ONSETS = "bdfghklmnprstvz"
_VOWELS = "aeiou"
_CODAS = "nrls"
_SHARES = {"train": range(60), "valid": range(60, 80), "test": range(80, 100)}

_SYLLABLE = f"[{_ONSETS}][{_VOWELS}]"
_MADE_UP = re.compile(rf"\b(?=[A-Z])(?i:{_SYLLABLE}{_SYLLABLE}[{_CODAS}]?{_SYLLABLE}(?:{_SYLLABLE})?)\b")
_NUMBER = re.compile(r"\d+")

# English words the syllables can spell; the templates' own words are refused by the caller.
_ENGLISH = frozenset(
    {
        "banana",
        "tomato",
        "potato",
        "casino",
        "canada",
        "helena",
        "marina",
        "tamara",
        "natali",
        "regalia",
        "tobago",
        "sahara",
        "nevada",
        "panama",
        "malaga",
        "havana",
        "bikini",
        "kimono",
        "salami",
        "safari",
        "sonata",
        "volcano",
        "vanilla",
        "banaba",
        "karate",
        "verona",
        "potala",
    }
)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(token: str) -> str:
    """The only split in which this made-up word or number may occur."""
    share = _hash(token) % 100
    return next(split for split, shares in _SHARES.items() if share in shares)


def is_place(word: str) -> bool:
    """Whether a made-up word names a place (otherwise a person)."""
    return _hash("place:" + word) % 2 == 0


def entities(text: str) -> list[str]:
    """All made-up names and places and all digit runs of a text, in order, with repeats."""
    found = [(match.start(), match.group()) for match in _MADE_UP.finditer(text)]
    found += [(match.start(), match.group()) for match in _NUMBER.finditer(text)]
    return [token for _, token in sorted(found)]


def mask(text: str) -> str:
    """The text with every name, place and number replaced by one placeholder each."""
    return _NUMBER.sub("<number>", _MADE_UP.sub("<name>", text))


class Universe:
    """Draws fresh names, places and numbers of one split; nothing twice until `forget`."""

    def __init__(self, split: str, rng: random.Random, refused: frozenset[str] = frozenset()) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
        self.split = split
        self.rng = rng
        self.refused = refused | _ENGLISH
        self._used: set[str] = set()

    def forget(self) -> None:
        """Start a new dialogue: what the last one used may be drawn again."""
        self._used.clear()

    def _syllable(self) -> str:
        return self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS)

    def _word(self, place: bool) -> str:
        while True:
            coda = self.rng.choice(_CODAS) if self.rng.random() < 0.5 else ""
            tail = self._syllable() if self.rng.random() < 0.25 else ""
            word = (self._syllable() + self._syllable() + coda + self._syllable() + tail).capitalize()
            ours = split_of(word) == self.split and is_place(word) == place
            if ours and word not in self._used and word.lower() not in self.refused:
                self._used.add(word)
                return word

    def person(self) -> str:
        """An unused name of a person."""
        return self._word(place=False)

    def place(self) -> str:
        """An unused name of a place."""
        return self._word(place=True)

    def number(self, low: int, high: int) -> str:
        """An unused integer of this split, low and high included."""
        for _ in range(10_000):
            digits = str(self.rng.randint(low, high))
            if split_of(digits) == self.split and digits not in self._used:
                self._used.add(digits)
                return digits
        raise ValueError(f"no unused number of split {self.split!r} between {low} and {high}")
