"""Writes the corpus the tiny base model is pretrained on: dialogues and questions about them.

    python -m assets.corpus --out corpus.jsonl

A row is {"text": dialogue} or {"messages": [...]}. Names and numbers are of the train split's universe
(a probe of unseen ones is made with `--split valid`), and no row contains a summary: the base model learns
to read, continue and copy, and is left to be taught summarizing.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assets.dialogues import Dialogue, compose, universe_of
from assets.names import SPLITS, Universe, entities

Question = tuple[str, str]

ROWS = 40_000
MOST = 6
INSTRUCTIONS = (
    "Answer the question about the dialogue.\n{question}",
    "Read the dialogue and answer.\n{question}",
    "{question}",
    "Question: {question}",
    "Here is a dialogue. {question}",
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SENTENCES = ("It is {}.", "The answer is {}.", "In the end it is {}.")


def _settled(dialogue: Dialogue, rng: random.Random) -> Iterator[Question]:
    for question, answer in dialogue.asked:
        if rng.random() < 0.2:
            yield f"{question} Answer in a sentence.", rng.choice(SENTENCES).format(answer)
        else:
            yield question, answer
    listed = "\n".join(f"{question} {answer}" for question, answer in dialogue.asked)
    yield "Which questions are settled, and how?", listed


def _corrected(dialogue: Dialogue) -> Iterator[Question]:
    found = dialogue.correction
    if found is None:
        yield "Was anything said wrong at first?", "No."
        return
    told = f"Yes, {found.speaker} said {found.wrong} before {found.right}."
    yield "Was anything said wrong at first?", told
    yield f"Which {found.noun} was wrong at first?", found.wrong
    yield f"Which {found.noun} is right?", found.right
    yield "Who made a mistake?", found.speaker


def _said(dialogue: Dialogue, rng: random.Random) -> Iterator[Question]:
    lines = dialogue.lines
    yield "Who speaks first?", lines[0][0]
    yield "Who are the two speakers?", f"{lines[0][0]} and {lines[1][0]}."
    yield "Who answers?", lines[1][0]
    speaker, words = rng.choice(lines)
    yield f'Who says "{words}"?', speaker
    at = rng.randrange(len(lines) - 1)
    yield f'What is the reply to "{lines[at][1]}"?', lines[at + 1][1]
    at = rng.randrange(len(ORDINALS))
    yield f"Repeat the {ORDINALS[at]} line.", "{}: {}".format(*lines[at])
    yield "Repeat the last line.", "{}: {}".format(*lines[-1])


def _mentioned(dialogue: Dialogue) -> Iterator[Question]:
    found = list(dict.fromkeys(entities(dialogue.text)))
    numbers = [token for token in found if token.isdigit()]
    names = [token for token in found if not token.isdigit()]
    if numbers:
        yield "Which numbers are mentioned?", ", ".join(numbers)
    yield "Which names are mentioned?", ", ".join(names)
    yield "What is it about?", dialogue.topic


def questions(dialogue: Dialogue, rng: random.Random) -> list[Question]:
    """Questions with their answers, in random order."""
    found = [
        *_settled(dialogue, rng),
        *_corrected(dialogue),
        *_said(dialogue, rng),
        *_mentioned(dialogue),
    ]
    rng.shuffle(found)
    return found


def chat(dialogue: Dialogue, asked: list[Question], rng: random.Random) -> list[dict[str, str]]:
    """The first question stands before the dialogue, as an instruction; the others follow turn by turn."""
    messages = []
    for number, (question, answer) in enumerate(asked):
        if number == 0:
            instruction = rng.choice(INSTRUCTIONS).format(question=question)
            question = f"{instruction}\n\n{dialogue.text}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def continuation(dialogue: Dialogue, rng: random.Random) -> list[dict[str, str]]:
    """A chat whose answer is the rest of the dialogue."""
    lines = dialogue.text.split("\n")
    cut = rng.randint(2, len(lines) - 2)
    return [
        {"role": "user", "content": "Continue the dialogue.\n\n" + "\n".join(lines[:cut])},
        {"role": "assistant", "content": "\n".join(lines[cut:])},
    ]


def repetition(dialogue: Dialogue, universe: Universe, rng: random.Random) -> list[dict[str, str]]:
    """A chat whose answer is its question: a list of fresh words and numbers, or some lines.

    Nothing teaches a small model to copy as quickly.
    """
    if rng.random() < 0.6:
        words = [rng.choice((universe.person, universe.place))() for _ in range(rng.randint(2, 8))]
        words += [universe.number(10, 9999) for _ in range(rng.randint(1, 4))]
        rng.shuffle(words)
        text = ", ".join(words)
    else:
        lines = dialogue.text.split("\n")
        start = rng.randrange(len(lines) - 2)
        text = "\n".join(lines[start : start + rng.randint(2, 5)])
    asked = {"role": "user", "content": f"Repeat this.\n\n{text}"}
    return [asked, {"role": "assistant", "content": text}]


def rows(count: int, split: str = "train", seed: int = 0, most: int = MOST) -> Iterator[dict[str, Any]]:
    """Chats of two to `most` questions, with repetitions, continuations and plain dialogues between them."""
    rng = random.Random(f"corpus-{split}-{seed}")
    universe = universe_of(split, rng)
    for _ in range(count):
        dialogue = compose(universe, rng)
        share = rng.random()
        if share < 0.05:
            yield {"text": dialogue.text}
        elif share < 0.1:
            yield {"messages": continuation(dialogue, rng)}
        elif share < 0.35:
            yield {"messages": repetition(dialogue, universe, rng)}
        else:
            yield {"messages": chat(dialogue, questions(dialogue, rng)[: rng.randint(2, most)], rng)}


def probe(count: int, split: str = "valid", seed: int = 0) -> Iterator[dict[str, Any]]:
    """One question a row, only those whose answer is copied: names, places and numbers."""
    rng = random.Random(f"probe-{split}-{seed}")
    universe = universe_of(split, rng)
    for _ in range(count):
        dialogue = compose(universe, rng)
        copied = [pair for pair in questions(dialogue, rng) if pair[1] in entities(pair[1])]
        yield {"messages": chat(dialogue, copied[:1], rng)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the corpus for pretraining the tiny base model.")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--split", choices=SPLITS, default="train", help="whose names and numbers to use")
    parser.add_argument("--probe", action="store_true", help="single questions with copied answers instead")
    parser.add_argument("--questions", type=int, default=MOST, help="at most so many about one dialogue")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.probe:
        made = probe(args.rows, args.split, args.seed)
    else:
        made = rows(args.rows, args.split, args.seed, args.questions)
    with args.out.open("w", encoding="utf-8") as file:
        for row in made:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
