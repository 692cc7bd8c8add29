"""Composes dialogues with summaries from the topics; writes train, valid and test, and a larger train.

    python -m assets.dialogues --out assets/dialogues

A summary follows from its dialogue: which facts were settled, in which order, by whom, and whether a
value was corrected on the way. Asides carry names and numbers that no summary mentions.
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from assets import topics_errands, topics_home, topics_people
from assets.names import SPLITS, Universe, mask
from assets.topics import Fact, Form, Topic

TOPICS: tuple[Topic, ...] = topics_home.TOPICS + topics_people.TOPICS + topics_errands.TOPICS
SIZES = {"train": 2400, "valid": 300, "test": 300}
LARGE = 4 * SIZES["train"]  # the rows of train and more of its universe
TURNS = range(6, 15)
SUMMARY_WORDS = range(15, 46)
DIALOGUE_WORDS = range(70, 151)

ASIDES = (
    "A: Did I tell you that I met {x} yesterday? | B: No, but give my regards.",
    "B: Sorry for the noise, {x} is drilling holes next door. | A: No problem, I can hear you.",
    "A: I read that {y} now has {k} trees less. | B: What a shame, I used to like that town.",
    "B: My phone has only {k} seconds of credit left. | A: Then let's be quick.",
    "A: By the way, {x} says hello. | B: Thanks, that's kind.",
    "B: Excuse me, {x} is calling on the other line. | A: Take your time.",
    "A: My last call to {y} took {k} minutes. | B: I'll try to be faster than that.",
    "B: It's raining so hard in {y} today. | A: Here the sun is out.",
)
CLOSINGS = (
    "A: Thank you, {B}. Goodbye. | B: Goodbye, {A}.",
    "A: That's all I wanted to know. | B: Have a nice day!",
    "B: Is there anything else? | A: No, thanks, {B}.",
    "B: So that's settled. | A: Great, see you soon!",
    "A: Thanks a lot for your time. | B: You're welcome, {A}.",
    "B: Call me if anything comes up. | A: I will, {B}.",
    "B: Take care, {A}! | A: You too.",
    "A: I have to run now. | B: Okay, bye!",
)
SLIPS = ("No, sorry, {}.", "Wait, no, {}.", "Sorry, I meant {}.", "Oh no, it's {}.")
CHECKS = (
    ("{}, you say?", "No, my mistake, {}."),
    ("So it's {}?", "No, I misspoke, {}."),
    ("Did you say {}?", "I did, but {} is right."),
)
AFTERTHOUGHTS = (
    ("Wait, I got the {noun} wrong. It's {right}, not {wrong}.", "Good that you noticed."),
    ("One more thing, the {noun} is {right} and not {wrong}.", "Okay, {right} then."),
    ("Hold on, I said {wrong}, but the {noun} is {right}.", "Thanks for putting that right."),
)


@dataclass(frozen=True)
class Correction:
    """A value that its speaker first got wrong."""

    speaker: str
    noun: str
    wrong: str
    right: str


@dataclass(frozen=True)
class Dialogue:
    """A composed dialogue; `asked` holds (question, short answer) pairs about what was settled."""

    topic: str
    lines: tuple[tuple[str, str], ...]
    summary: str
    asked: tuple[tuple[str, str], ...]
    correction: Correction | None

    @property
    def text(self) -> str:
        """One line `Name: words` for each turn."""
        return "\n".join(f"{speaker}: {words}" for speaker, words in self.lines)


def form(summary: str) -> str:
    """The summary's form: what is left when names, places and numbers are masked out."""
    return mask(summary)


def english_words() -> frozenset[str]:
    """Every word the templates use, in lower case; no made-up name may be one of them."""
    texts = [*ASIDES, *CLOSINGS, *SLIPS, *(part for pair in CHECKS + AFTERTHOUGHTS for part in pair)]
    for topic in TOPICS:
        texts += [*topic.things, *topic.asides]
        texts += [part for opening in topic.openings for part in (opening.lines, opening.clause)]
        for fact in topic.facts:
            texts += [fact.noun, fact.question, *fact.words]
            texts += [part for form_ in fact.forms for part in (form_.lines, form_.clause)]
    return frozenset(re.findall(r"[a-z]+", " ".join(texts).lower()))


_REFUSED = english_words()


class _Composer:
    """State of one dialogue while it is put together."""

    def __init__(self, topic: Topic, universe: Universe, rng: random.Random) -> None:
        self.topic, self.universe, self.rng = topic, universe, rng
        self.shared = {
            "A": universe.person(),
            "B": universe.person(),
            "L": universe.place(),
            "T": rng.choice(topic.things),
        }
        self.lines: list[tuple[str, str]] = []
        self.clauses: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.correction: Correction | None = None
        self.afterthought: list[tuple[str, str]] = []

    def _slots(self, text: str, numbers: tuple[int, int], words: tuple[str, ...] = ()) -> dict[str, str]:
        slots = dict(self.shared)
        for name in sorted(set(re.findall(r"{(\w)}", text)) - slots.keys()):
            match name:
                case "n" | "k":
                    slots[name] = self.universe.number(*numbers)
                case "x":
                    slots[name] = self.universe.person()
                case "y":
                    slots[name] = self.universe.place()
                case "w":
                    slots[name] = self.rng.choice(words)
                case _:
                    raise ValueError(f"unknown slot {{{name}}} in {text!r}")
        return slots

    def _say(self, lines: str, slots: dict[str, str]) -> None:
        for line in lines.split(" | "):
            speaker, words = line.split(": ", 1)
            self.lines.append((self.shared[speaker], words.format(**slots)))

    def open(self) -> None:
        opening = self.rng.choice(self.topic.openings)
        slots = self._slots(opening.lines, (100, 999))
        self._say(opening.lines, slots)
        self.clauses.append(opening.clause.format(**slots))

    def aside(self) -> None:
        lines = self.rng.choice(self.topic.asides if self.rng.random() < 0.5 else ASIDES)
        self._say(lines, self._slots(lines, (11, 999)))

    def settle(self, fact: Fact, corrected: bool) -> None:
        chosen: Form = self.rng.choice(fact.forms)
        slots = self._slots(chosen.lines, fact.numbers, fact.words)
        clause = chosen.clause.format(**slots)
        self.asked.append((fact.question, slots[fact.value]))
        if corrected:
            clause += self._say_wrong_first(fact, chosen.lines, slots)
        else:
            self._say(chosen.lines, slots)
        self.clauses.append(clause)

    def _say_wrong_first(self, fact: Fact, lines: str, slots: dict[str, str]) -> str:
        """Say the fact with a wrong value and put it right; returns what the summary adds."""
        right = slots[fact.value]
        wrong = self._slots("{" + fact.value + "}", fact.numbers)[fact.value]
        parts = lines.split(" | ")
        first = next(i for i, line in enumerate(parts) if "{" + fact.value + "}" in line)
        mistaken = slots | {fact.value: wrong}
        letter = parts[first][0]
        speaker, other = self.shared[letter], self.shared["B" if letter == "A" else "A"]
        self.correction = Correction(speaker, fact.noun, wrong, right)

        self._say(" | ".join(parts[: first + 1]), mistaken)
        match self.rng.choice(("slip", "check", "afterthought")):
            case "slip":
                name, words = self.lines[-1]
                self.lines[-1] = (name, words + " " + self.rng.choice(SLIPS).format(right))
            case "check":
                check, answer = self.rng.choice(CHECKS)
                self.lines += [(other, check.format(wrong)), (speaker, answer.format(right))]
            case _:
                if parts[first + 1 :]:
                    self._say(" | ".join(parts[first + 1 :]), mistaken)
                told, heard = self.rng.choice(AFTERTHOUGHTS)
                values = {"noun": fact.noun, "right": right, "wrong": wrong}
                self.afterthought = [(speaker, told.format(**values)), (other, heard.format(**values))]
                return f", as {speaker} corrects at the end"
        if parts[first + 1 :]:
            self._say(" | ".join(parts[first + 1 :]), slots)
        return f" after a slip by {speaker}"

    def close(self) -> None:
        self.lines += self.afterthought
        self._say(self.rng.choice(CLOSINGS), self.shared)

    def finish(self) -> Dialogue:
        turns: list[tuple[str, str]] = []
        for speaker, words in self.lines:
            if turns and turns[-1][0] == speaker:
                turns[-1] = (speaker, f"{turns[-1][1]} {words}")
            else:
                turns.append((speaker, words))
        return Dialogue(self.topic.name, tuple(turns), _summarize(self.clauses), tuple(self.asked), self.correction)


def _summarize(clauses: list[str]) -> str:
    """Head and facts in the order of the dialogue, in one to three sentences."""
    head, *facts = clauses
    match facts:
        case [only]:
            sentences = [f"{head}, and {only}"]
        case [first, second]:
            sentences = [head, f"{first}, and {second}"]
        case [first, second, third]:
            sentences = [head, f"{first}, and {second}", third]
        case _:
            raise ValueError(f"a summary has 1 to 3 facts, got {len(facts)}")
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)


def universe_of(split: str, rng: random.Random) -> Universe:
    """The names and numbers of a split, without the words of the templates."""
    return Universe(split, rng, _REFUSED)


def compose(universe: Universe, rng: random.Random) -> Dialogue:
    """One dialogue within the limits of length."""
    while True:
        universe.forget()
        composer = _Composer(rng.choice(TOPICS), universe, rng)
        facts = rng.sample(composer.topic.facts, rng.choices((1, 2, 3), (6, 40, 54))[0])
        corrected = rng.choice(facts) if rng.random() < 0.5 else None
        steps: list[Fact | None] = list(facts)
        for _ in range(rng.randint(1, max(1, 3 - len(facts)))):
            steps.insert(rng.randint(0, len(steps)), None)
        composer.open()
        for step in steps:
            if step is None:
                composer.aside()
            else:
                composer.settle(step, step is corrected)
        composer.close()
        dialogue = composer.finish()
        if (
            len(dialogue.lines) in TURNS
            and len(dialogue.text.split()) in DIALOGUE_WORDS
            and len(dialogue.summary.split()) in SUMMARY_WORDS
        ):
            return dialogue


def rows(split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """The rows of one split, always the same for the same arguments."""
    rng = random.Random(f"{split}-{seed}")
    universe = universe_of(split, rng)
    made = (compose(universe, rng) for _ in range(count))
    return [
        {"id": f"{split}-{i:05d}", "dialogue": one.text, "summary": one.summary, "topic": one.topic}
        for i, one in enumerate(made, start=1)
    ]


def write(out: Path, seed: int = 0) -> None:
    """Write `train.jsonl`, `valid.jsonl`, `test.jsonl` and `train-large.jsonl` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, split, count in (*((split, split, SIZES[split]) for split in SPLITS), ("train-large", "train", LARGE)):
        text = "".join(json.dumps(row) + "\n" for row in rows(split, count, seed))
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the generated dialogues with their summaries.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.seed)


if __name__ == "__main__":
    main()
