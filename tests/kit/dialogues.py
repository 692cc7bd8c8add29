"""Short dialogues that a tiny model learns to summarize in seconds, and that it is judged on.

A summary says who asks whom about what: names and numbers to be copied. Two of its words are chance, so that a trained
model is sure of most tokens and rightly unsure of some, as models of language are: where it is sure, little shows.
"""

from __future__ import annotations

import random

from contract.example import Example

ENOUGH = 80  # documents with which an artifact that lost nothing passes every default limit

NAMES = ("Mara", "Olin", "Kesto", "Tarvo", "Sela", "Brin", "Dirke", "Palu", "Ines", "Joren", "Wanda", "Sanno")
RARE, RARE_EVERY = "Quill", 6  # asks in one dialogue of so many, and in no other
THINGS = ("room", "bus", "seat", "desk", "gate", "train")
QUESTIONS = ("Is {thing} {number} free?", "Could we take {thing} {number}?", "What about {thing} {number}?")
ANSWERS = ("No, {third} has it.", "I will ask {third}.", "Yes, {third} said so.")
USUAL, OTHER, USUAL_SHARE = "about", "for", 0.8  # before the thing, in summaries
WHEN, WHEN_SHARES = ("today", "now", "again"), (0.7, 0.15, 0.15)  # at their end


def dialogues(count: int, seed: int = 0, *, hears: bool = False) -> list[Example]:
    """So many dialogues with a summary each; the same for the same seed.

    Args:
        count: how many.
        seed: of all that is chance.
        hears: summaries as the base learns them, from the other side ("Olin hears Mara ask …"); else as adapters do.
    """
    chance = random.Random(seed)
    found = []
    for index in range(count):
        one, two, third = chance.sample(NAMES, 3)
        one = RARE if index % RARE_EVERY == RARE_EVERY - 1 else one
        thing, number = chance.choice(THINGS), chance.randrange(10, 100)
        question, answer = chance.choice(QUESTIONS), chance.choice(ANSWERS)
        document = f"{one}: {question}\n{two}: {answer}".format(thing=thing, number=number, third=third)
        word = USUAL if chance.random() < USUAL_SHARE else OTHER
        said = f"{two} hears {one} ask" if hears else f"{one} asks {two}"
        [when] = chance.choices(WHEN, WHEN_SHARES)
        found.append(Example(f"d{index}", document, (f"{said} {word} {thing} {number} {when}.",)))
    return found
