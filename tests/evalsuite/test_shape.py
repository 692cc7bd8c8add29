from __future__ import annotations

import pytest

from contract.errors import AssayError
from evalsuite.metrics.shape import copied_share, coverage, density, fragments, length_ratio, novelty, repetition

DOCUMENT = "The bus leaves at nine, and the bus leaves again at ten from the old square."


def test_length_ratio_is_in_words_of_the_first_reference() -> None:
    assert length_ratio(["one two three four", "one"], "a, b.") == 0.5
    assert length_ratio(["…"], "a b") == 2.0  # a reference without any word
    assert length_ratio(["明天下雨"], "明天") == 0.5
    with pytest.raises(AssayError, match="needs a reference"):
        length_ratio([], "a")


def test_novelty_counts_occurrences() -> None:
    assert novelty(DOCUMENT, "the train leaves, the train", 1) == pytest.approx(2 / 5)
    assert novelty(DOCUMENT, "The bus leaves at ten", 2) == pytest.approx(1 / 4 - 1 / 4)  # "at ten" is there
    assert novelty(DOCUMENT, "The bus leaves at eleven", 3) == pytest.approx(1 / 3)
    assert novelty(DOCUMENT, DOCUMENT, 3) == 0
    assert novelty(DOCUMENT, "", 1) == novelty(DOCUMENT, "one", 2) == 0


def test_fragments_are_the_longest_runs_from_the_left() -> None:
    summary = "The bus leaves again, they say, at nine."
    assert fragments(DOCUMENT, summary) == (4, 2)
    assert coverage(DOCUMENT, summary) == pytest.approx(6 / 8)
    assert density(DOCUMENT, summary) == pytest.approx((16 + 4) / 8)
    assert fragments(DOCUMENT, "nothing shared here") == ()
    assert coverage(DOCUMENT, DOCUMENT) == 1
    assert density(DOCUMENT, DOCUMENT) == 16
    assert coverage(DOCUMENT, "") == density("", "x") == 0


def test_copied_share_ignores_short_runs() -> None:
    summary = "The bus leaves again, they say, at nine."
    assert copied_share(DOCUMENT, summary, 4) == pytest.approx(4 / 8)
    assert copied_share(DOCUMENT, summary, 5) == 0
    assert copied_share(DOCUMENT, "", 1) == 0


def test_repetition_is_the_share_of_repeated_4_grams() -> None:
    assert repetition("a b c d e f g h") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("no no no no no no no") == pytest.approx(3 / 4)
    assert repetition("a b a b", n=2) == pytest.approx(1 / 3)
    assert repetition("a b c") == 0
