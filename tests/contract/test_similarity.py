"""Same and nearly the same: by the definition, in every process, and quickly among many."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from contract.similarity import NEAR_JACCARD, NearIndex, near_duplicates, normalised, same_key, shingles

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "other",
    [
        "mara: we meet at the CAFÉ\n\n at nine. ",
        "Mara:\tWe meet at the café\u00a0at nine.",
        "Mara: We meet at the cafe\u0301 at nine.",
        "Mara: We meet at the ca\u00adf\u200bé at nine.\ufeff",
        "Ｍara: We meet at the café at nine.",
        "Mara: We meet\x01 at the café at nine.\U000e0041",
        "Mara : We me et at the café at nine .",
    ],
)
def test_case_white_space_and_what_cannot_be_seen_make_no_difference(other: str) -> None:
    assert same_key(other) == same_key("Mara: We meet at the café at nine.")


def test_words_stay_apart_where_they_are_compared_one_by_one() -> None:
    assert normalised("\tMara:  We\nMEET\u200b. ") == "mara: we meet."


@pytest.mark.parametrize("other", ["Mara: We meet at the café at ten.", "Mara: We meet at the cafe at nine."])
def test_other_words_do(other: str) -> None:
    assert same_key(other) != same_key("Mara: We meet at the café at nine.")


def test_shingles_are_the_same_in_every_process() -> None:
    text = "one two three four five six seven eight nine ten"
    program = f"from contract.similarity import shingles; print(sorted(shingles({text!r})))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.stdout.strip() == str(sorted(shingles(text)))
    assert len(shingles(text)) == 3
    assert len(shingles("too short for eight")) == 1
    assert shingles("a lone \ud800") != shingles("a lone x")


def _jaccard(one: str, two: str) -> float:
    """By the definition, of the words themselves."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + 8]) for at in range(max(1, len(words) - 7))}

    return len(runs(one) & runs(two)) / len(runs(one) | runs(two))


def test_every_near_duplicate_is_found_and_nothing_else() -> None:
    chance = random.Random(0)
    texts: list[str] = []
    for _ in range(60):  # families of texts with a few words changed, cut off or added: similarities of every size
        words = [f"w{chance.randrange(40)}" for _ in range(chance.randrange(6, 90))]
        for _ in range(4):
            other = list(words)
            for _ in range(chance.randrange(3)):
                other[chance.randrange(len(other))] = f"new{chance.randrange(1000)}"
            texts.append(" ".join(other[chance.randrange(4) : len(other) - chance.randrange(4)]))
    near = {
        (at, other): found
        for at in range(len(texts))
        for other in range(at)
        if (found := _jaccard(texts[at], texts[other])) >= NEAR_JACCARD
    }
    assert 40 < len(near) < 1000
    pairs = near_duplicates(texts)
    assert {at for at, _, _ in pairs} == {at for at, _ in near}
    assert all(jaccard == pytest.approx(near[at, other]) for at, other, jaccard in pairs)
    half = len(texts) // 2
    index = NearIndex(texts[:half])
    for text in texts[half:]:
        best = max(((_jaccard(text, held), -at) for at, held in enumerate(texts[:half])), key=lambda pair: pair)
        expected = (-best[1], best[0]) if best[0] >= NEAR_JACCARD else None
        assert index.nearest(text) == (expected and pytest.approx(expected))


def test_a_similarity_of_exactly_four_fifths_counts() -> None:
    words = [f"w{n}" for n in range(16)]  # 9 shingles; 8 of them shared of 10 together
    assert near_duplicates([" ".join(words), " ".join([*words[1:], "end"])]) == [(1, 0, 0.8)]
    assert near_duplicates([" ".join(words[:15]), " ".join([*words[1:15], "end"])]) == []


def test_no_text_or_one_has_no_near_duplicate() -> None:
    assert near_duplicates([]) == near_duplicates(["a"]) == []
    assert NearIndex([]).nearest("a") is None
