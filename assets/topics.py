"""What a topic of the dialogues is made of.

A line is "A: text" or "B: text"; lines of one exchange are joined by " | ". Slots: {A} {B} the speakers,
{L} the dialogue's place, {T} its thing; and, fresh in each exchange, {n} {k} numbers, {x} a person,
{y} a place, {w} one of the fact's words.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One way to say something (lines of the exchange) and what a summary makes of it."""

    lines: str
    clause: str


@dataclass(frozen=True)
class Fact:
    """Something the two speakers settle; `value` is the slot that matters and may be corrected."""

    noun: str
    question: str
    forms: tuple[Form, ...]
    value: str = "n"
    numbers: tuple[int, int] = (100, 999)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """Openings, facts to settle, and asides that no summary mentions."""

    name: str
    things: tuple[str, ...]
    openings: tuple[Form, ...]
    facts: tuple[Fact, ...]
    asides: tuple[str, ...]


def fact(
    noun: str,
    question: str,
    *forms: tuple[str, str],
    value: str = "n",
    numbers: tuple[int, int] = (100, 999),
    words: str = "",
) -> Fact:
    """A fact from (lines, clause) pairs; `words` are separated by commas."""
    options = tuple(word.strip() for word in words.split(",")) if words else ()
    return Fact(noun, question, tuple(Form(*form) for form in forms), value, numbers, options)


def topic(name: str, things: str, openings: list[tuple[str, str]], facts: list[Fact], asides: list[str]) -> Topic:
    """A topic from plain lists; `things` are separated by commas."""
    return Topic(
        name,
        tuple(thing.strip() for thing in things.split(",")),
        tuple(Form(*opening) for opening in openings),
        tuple(facts),
        tuple(asides),
    )
