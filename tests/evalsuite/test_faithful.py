from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from evalsuite.metrics.faithful import invented_names, invented_numbers, ordinary_words

DOCUMENT = (
    "Mara: let's meet at 5:30 pm, bring 1,000 crowns.\nolin: half past nine? ok, two beers for José, room 12.05 at "
    "Saint-Just street. the germans pay twenty-five."
)
DIALOGUES = Path(__file__).resolve().parents[2] / "assets" / "dialogues" / "test.jsonl"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("They meet at 17:30 with 1000 crowns and 2 beers.", set()),
        ("They meet at 5 or 9:30 and 25 pay.", set()),
        ("1. They meet.\n2) They drink.\n3. They pay 1 000.", set()),
        ("The two of them, and three others, meet.", set()),  # a count, not a claim
        ("They meet at 6:30 with 1,001 crowns.", {"6:30", "1,001"}),
        ("Fifty crowns and 315 plates.", {"Fifty", "315"}),
        ("It costs 2 million.", {"2 million"}),
        ("", set()),
    ],
)
def test_invented_numbers(prediction: str, expected: set[str]) -> None:
    assert invented_numbers(DOCUMENT, prediction) == expected


def test_a_reference_excuses() -> None:
    assert invented_numbers(DOCUMENT, "It is 42 for Kesto.", ["Kesto pays forty-two."]) == set()
    assert invented_names(DOCUMENT, "It is 42 for Kesto.", ["Kesto pays forty-two."]) == set()
    assert invented_names(DOCUMENT, "It is 42 for Kesto.") == {"Kesto"}


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Mara and Olin meet Jose on Saint Just Street.", set()),  # another case, accent, hyphen
        ("Olin's friend is German.", set()),
        ("Meetings cost money. Yesterday it rained. Everyone knows.", set()),  # ordinary words at the beginning
        ('I\'m late. She said: "We pay."', set()),
        ("Mara meets Kesto.", {"Kesto"}),
        ("Kesto asks Mara to pay.", {"Kesto"}),
        ("Kesto's beer is cold.", {"Kesto"}),
        ("Kesto and Zed meet.", {"Kesto", "Zed"}),
        ("Kesto: hello.", {"Kesto"}),
        ("Dinner is ready.", set()),
        ("They meet in New York.", {"New", "York"}),
        ("MARA MEETS KESTO IN PARIS", set()),  # capitals say nothing
        ("马拉见了凯斯托。", set()),  # nor do scripts without them
    ],
)
def test_invented_names(prediction: str, expected: set[str]) -> None:
    assert invented_names(DOCUMENT, prediction) == expected


def test_words_that_are_ordinary_elsewhere_begin_sentences_unseen() -> None:
    assert invented_names(DOCUMENT, "Traffic takes time.") == {"Traffic"}
    assert invented_names(DOCUMENT, "Traffic takes time.", ordinary=ordinary_words(["heavy traffic", "Kesto"])) == set()
    assert invented_names(DOCUMENT, "Kesto takes time.", ordinary=ordinary_words(["heavy traffic", "Kesto"])) == {
        "Kesto"
    }


def test_on_the_sample_dialogues_no_false_alarm_and_strangers_are_seen() -> None:
    rows = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    assert not any(invented_names(row["dialogue"], row["summary"]) for row in rows)
    assert not any(invented_numbers(row["dialogue"], row["summary"]) for row in rows)
    strangers = [(row["dialogue"], other["summary"]) for row, other in pairwise(rows)]
    assert sum(bool(invented_names(*pair)) for pair in strangers) > 0.99 * len(strangers)
    assert sum(bool(invented_numbers(*pair)) for pair in strangers) > 0.9 * len(strangers)
