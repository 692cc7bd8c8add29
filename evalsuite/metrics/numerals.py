"""Which numbers a text states, whichever way it writes them: 1,000 or 1 000 or 1.000 or 1k; 17:30 or half past five.

A numeral may be read in more than one way ("1.500" is 1500 or 1.5, "5.30" may be a time), so each has a set of
readings, and two numerals agree when they share one. Times are read on a 12-hour clock. Number words are English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

_NUMERAL = re.compile(r"(\d+(?:[.,:'’]\d+)*)(?:\s?(k|thousand|mn?|million|bn|billion)\b)?", re.IGNORECASE)
_SPACED_GROUPS = re.compile(r"(?<![\d.,:])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)")
_TIME = re.compile(r"([01]?\d|2[0-4])[:.]([0-5]\d)")
_COMMA_GROUPS = re.compile(r"\d{1,3}(?:[,'’]\d{3})+(?:\.\d+)?")
_POINT_GROUPS = re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?")
_SCALES = {"k": 3, "thousand": 3, "m": 6, "mn": 6, "million": 6, "bn": 9, "billion": 9}

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_UNITS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_UNITS |= {word: value for value, word in enumerate(_ORDINALS.split(), 1)}
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_NUMBER_WORD = rf"(?:{'|'.join([*_UNITS, *_MULTIPLES])})\b"
_WORD_RUN = re.compile(rf"\b{_NUMBER_WORD}(?:(?:\sand\s|[\s-]){_NUMBER_WORD})*", re.IGNORECASE)
_SPOKEN_TIME = re.compile(r"\b(half|quarter) (past|to) (\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Numeral:
    """One number as it stands in a text, and every way to read it, in one spelling ("1000", "1.5", "5:30")."""

    text: str
    readings: frozenset[str]


def numerals(text: str) -> list[Numeral]:
    """The numbers written in digits, of any script; of a date, a version or a ratio each part by itself."""
    return list(_numerals(_SPACED_GROUPS.sub(lambda match: re.sub(r"\s", ",", match.group()), _ascii_digits(text))))


def number_words(text: str) -> list[Numeral]:
    """The numbers written as English words: "two hundred and five", "twenty-five", "third", "half past nine"."""
    text = _NUMERAL.sub(" ", text)
    found = [Numeral(run, frozenset({_plain(Decimal(_value(run)))})) for run in _WORD_RUN.findall(text)]
    return found + [
        Numeral(match.group(), frozenset({time}))
        for match in _SPOKEN_TIME.finditer(text)
        if (time := _spoken_time(match[1], match[2], match[3]))
    ]


def stated(text: str) -> set[str]:
    """Every reading of every number of `text`; a number word counts alone and in its run, a time has its hour too."""
    digits = _ascii_digits(text)
    found = [*numerals(text), *_numerals(digits), *number_words(text)]
    times = [time for match in _NUMERAL.finditer(digits) if (time := _TIME.fullmatch(match[1]))]
    hours = {str(hour) for time in times for hour in (int(time[1]), int(time[1]) % 12)}
    alone = {str(_value(word)) for word in re.findall(rf"\b{_NUMBER_WORD}", text, re.IGNORECASE)}
    return hours | alone | {reading for numeral in found for reading in numeral.readings}


def _numerals(text: str) -> Iterator[Numeral]:
    for match in _NUMERAL.finditer(text):
        readings = frozenset(_readings(match[1], match[2]))
        if readings:
            yield Numeral(match.group(), readings)
        else:
            yield from (Numeral(part, frozenset({_plain(Decimal(part))})) for part in re.findall(r"\d+", match[1]))


def _readings(digits: str, scale: str | None) -> Iterator[str]:
    time = _TIME.fullmatch(digits)
    if time:
        yield _clock(60 * int(time[1]) + int(time[2]))
        if time[2] == "00":
            yield from (str(int(time[1])), str(int(time[1]) % 12))
    for value in _values(digits):
        if scale is None or scale.lower() == "m":  # metres, minutes
            yield _plain(value)
        if scale is not None:
            yield _plain(value.scaleb(_SCALES[scale.lower()]))


def _values(digits: str) -> Iterator[Decimal]:
    if _COMMA_GROUPS.fullmatch(digits):
        yield Decimal(re.sub(r"[,'’]", "", digits))
    elif re.fullmatch(r"\d+,\d+", digits):
        yield Decimal(digits.replace(",", "."))
    if _POINT_GROUPS.fullmatch(digits):
        yield Decimal(digits.replace(".", "").replace(",", "."))
    if re.fullmatch(r"\d+(?:\.\d+)?", digits):
        yield Decimal(digits)


def _value(run: str) -> int:
    """ "two hundred and five" -> 205."""
    total = current = 0
    for word in re.findall(r"[a-z]+", run.lower()):
        current += _UNITS.get(word, 0)
        if word in _MULTIPLES:
            current = max(1, current) * _MULTIPLES[word]
            if _MULTIPLES[word] >= 1_000:
                total, current = total + current, 0
    return total + current


def _spoken_time(part: str, side: str, hour: str) -> str | None:
    value = _UNITS.get(hour.lower())
    if value is None:
        return None
    minutes = 30 if part.lower() == "half" else 15
    return _clock(60 * value + (minutes if side.lower() == "past" else -minutes))


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 12}:{minutes % 60:02d}"


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _ascii_digits(text: str) -> str:
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)
