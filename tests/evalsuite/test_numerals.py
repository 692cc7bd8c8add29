from __future__ import annotations

import pytest

from evalsuite.metrics.numerals import number_words, numerals, stated


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000"),
        ("1 000", "1000"),
        ("1\u202f000", "1,000"),
        ("1'000", "1000"),
        ("1.000.000,50", "1,000,000.5"),
        ("3,5", "3.50"),
        ("5k", "5,000"),
        ("2 million", "2,000,000"),
        ("5:30", "17:30"),
        ("5.30", "5:30"),
        ("12:15", "0:15"),
        ("17:00", "5"),
        ("007", "7"),
        ("३", "3"),
        ("１２", "12"),
    ],
)
def test_spellings_of_one_number_agree(one: str, other: str) -> None:
    [ours], [theirs] = numerals(one), numerals(other)
    assert ours.readings & theirs.readings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "100"),
        ("5:30", "6:30"),
        ("5:30", "30"),
        ("2 million", "2"),
        ("3.5", "35"),
        ("1,315", "315"),
        ("84", "841"),
    ],
)
def test_different_numbers_do_not(one: str, other: str) -> None:
    [ours], [theirs] = numerals(one), numerals(other)
    assert not ours.readings & theirs.readings


def test_what_is_no_single_number_counts_in_parts() -> None:
    assert [sorted(n.readings) for n in numerals("on 12.05.2024 they won 3:1")] == [
        ["12"],
        ["5"],
        ["2024"],
        ["3"],
        ["1"],
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("two", "2"),
        ("Twenty-five", "25"),
        ("two hundred and five", "205"),
        ("a hundred", "100"),
        ("three thousand four hundred", "3400"),
        ("third", "3"),
        ("a dozen", "12"),
    ],
)
def test_number_words(text: str, value: str) -> None:
    [found] = number_words(text)
    assert found.readings == {value}


def test_words_that_only_begin_like_numbers_are_none() -> None:
    assert number_words("a tenant, the sevens, someone, often, anyone") == []


def test_spoken_times() -> None:
    found = {
        reading
        for n in number_words("half past five, quarter to nine, a quarter past twelve")
        for reading in n.readings
    }
    assert {"5:30", "8:45", "0:15"} <= found
    assert not number_words("half past lunch")


def test_stated_has_every_reading() -> None:
    text = "Meet at 5:30 pm, bring 1,000 crowns and twenty-five plates, 2k each, 3.5 kg."
    assert stated(text) == {"5:30", "5", "1000", "25", "20", "2000", "3.5"}
    assert stated("nothing") == set()
