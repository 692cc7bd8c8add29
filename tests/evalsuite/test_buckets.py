from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.errors import AssayError
from evalsuite.metrics.buckets import BUCKETS, buckets

DOCUMENT = (
    "Mara: I looked at the flat in the old mill street, number 14, it has two rooms and a nice view of the river.\n"
    "Olin: How much is it, and when can we move in?\nMara: It costs 900 and we can have it from May on."
)
REFERENCE = "Mara found a flat with a view of the river. It costs 900 and is free from May."
DIALOGUES = Path(__file__).resolve().parents[2] / "assets" / "dialogues" / "test.jsonl"
COPY = "I looked at the flat in the old mill street, number 14, it has two rooms and a nice view of the river."
LOOP = "Mara found a flat and it is nice and it is nice and it is nice and it is nice and it is nice and it is nice."


@pytest.mark.parametrize(
    ("prediction", "stop", "expected"),
    [
        ("Mara found a flat with a nice view. It is free from May and costs 900.", "eos", ()),
        ("", "eos", ("empty",)),
        (" \n ", "length", ("empty", "never_stopped")),
        ("Mara found a flat with a nice view of the river and it", "eos", ("cut_off",)),
        ("Mara found a flat with a nice view of the river and it", None, ("cut_off",)),
        ("Mara found a flat with a nice view of the river and it", "length", ("never_stopped",)),
        ("Mara found a flat with a view of the river. It is nice 😀", "eos", ()),
        ("Mara found a flat, and it has “a nice view of the river.”", "eos", ()),
        (LOOP, "eos", ("loops",)),
        ("Mara found a flat with a view for 900, hahahahahahahahahahahahaha.", "eos", ("loops",)),
        ("Mara found a flat with a view for 900, hahahaha, from May on.", "eos", ()),
        (COPY, "eos", ("copies",)),
        (
            " ".join(
                [REFERENCE, "Olin asks how much it costs, when they can move in, and if it is in old mill street."]
            ),
            "eos",
            ("too_long",),
        ),
        ("Mara found a flat.", "eos", ("too_short",)),
        ("Mara found a flat with a view of the river. It costs 950 and is free from May.", "eos", ("invented_number",)),
        ("Mara found a flat with a view of the river for Kesto. It costs 900.", "eos", ("invented_name",)),
        (
            "Mara hat eine Wohnung mit Blick auf den Fluss und sie ist ab May frei für 900.",
            "eos",
            ("invented_name", "wrong_language"),
        ),
        ("Мара нашла квартиру с видом на реку. Она стоит 900 и свободна с мая.", "eos", ("wrong_language",)),
    ],
)
def test_each_failure_is_seen_and_nothing_else(prediction: str, stop: str | None, expected: tuple[str, ...]) -> None:
    assert buckets(DOCUMENT, [REFERENCE], prediction, stop) == expected


def test_a_reference_that_does_the_same_excuses() -> None:
    assert buckets(DOCUMENT, [REFERENCE, COPY], COPY) == ()
    assert buckets(DOCUMENT, [LOOP], LOOP) == ()
    assert buckets(DOCUMENT, [REFERENCE.rstrip(".")], REFERENCE.rstrip(".")) == ()
    assert buckets(DOCUMENT, ["Kesto pays 950 there."], "Then Kesto pays 950.") == ()


def test_length_is_held_against_the_nearest_reference() -> None:
    short, long = "A flat.", "There is a flat with a view of the river, and it has two rooms and costs 900 from May on."
    assert "too_long" in buckets(None, [short], long)
    assert "too_short" in buckets(None, [long], short)
    assert buckets(None, [short, long], short) == buckets(None, [short, long], long) == ()


def test_without_a_document_nothing_is_compared_with_it() -> None:
    assert buckets(None, [REFERENCE], "Kesto found a flat with a view of the river and 15 rooms. It is free.") == ()


def test_without_a_reference_there_is_nothing_to_say() -> None:
    with pytest.raises(AssayError, match="without a reference"):
        buckets(DOCUMENT, [], "x")


def test_every_bucket_is_described() -> None:
    order = "empty cut_off never_stopped loops copies too_long too_short invented_number invented_name wrong_language"
    assert " ".join(BUCKETS) == order
    assert all(BUCKETS.values())


def test_no_false_alarm_on_what_people_might_have_written() -> None:
    rows = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows if buckets(row["dialogue"], [row["summary"]], row["summary"], "eos")] == []
