from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from contract.errors import AssayError
from evalsuite.facts import facts, facts_right, facts_right_shuffled
from evalsuite.text import METRICS, lead_3, rouge, sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? four", ["One.", "Two!", "Three? four"]),
        (
            "Dr. Lund met J. Smith at 9 a.m. on Friday. They left.",
            ["Dr. Lund met J. Smith at 9 a.m. on Friday.", "They left."],
        ),
        ("It costs 3.50. “Fine.” He paid", ["It costs 3.50.", "“Fine.”", "He paid"]),
        ("A line\nanother line.\n\nlast", ["A line", "another line.", "last"]),
        ("今日は晴れ。明日は雨！", ["今日は晴れ。", "明日は雨！"]),
        ("Élise part. Ödön reste… Où?", ["Élise part.", "Ödön reste…", "Où?"]),
        ("  ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_on_ascii_text_rouge_is_rouge_scores_own() -> None:
    reference = "Mara asked Olin to move the meetings; they take room_527 at 9:30.\nKesto's told."
    prediction = "Olin is asked to move a meeting.\nThe room 527 was taken, Kesto knows it."
    theirs = RougeScorer(list(METRICS), use_stemmer=True).score(reference, prediction)
    assert rouge([reference], prediction) == {name: 100 * theirs[name].fmeasure for name in METRICS}


def test_sentences_matter_for_lsum_only() -> None:
    reference, prediction = "Alpha beta gamma. Delta eps zeta.", "Delta eps zeta. Alpha beta gamma."
    scores = rouge([reference], prediction)
    assert scores["rougeLsum"] == pytest.approx(100)
    assert scores["rougeL"] == pytest.approx(50)


def test_other_scripts_count() -> None:
    assert words("Café №5 naïve हिन्दी 東京へ") == ["café", "5", "naïve", "हिन्दी", "東", "京", "へ"]
    assert rouge(["Привет мир"], "привет, мир!")["rougeL"] == pytest.approx(100)
    assert rouge(["Привет мир"], "пока мир")["rouge1"] == pytest.approx(50)
    assert rouge(["Привет"], "")["rougeL"] == 0


def test_the_best_reference_counts_for_each_metric() -> None:
    both = rouge(["a b c d", "x y z"], "x y d")
    assert both["rouge2"] == rouge(["x y z"], "x y d")["rouge2"]
    assert both["rouge1"] == max(rouge([r], "x y d")["rouge1"] for r in ("a b c d", "x y z"))
    with pytest.raises(AssayError, match="without a reference"):
        rouge([], "x")


def test_lead_3_of_a_dialogue() -> None:
    assert lead_3("A: Hi.\nB: Hello. How are you?\nA: Fine.") == "A: Hi.\nB: Hello.\nHow are you?"


DOCUMENT = "Mara: Shall we take the bus 84?\nOlin: Fine. It costs 1,315.50 crowns. meetings are dull."


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Mara asks Olin's aunt about bus 84.", {"Mara", "Olin", "84"}),
        ("Meetings cost 1315.50 there.", {"1315.50"}),  # an ordinary word at the beginning
        ("Then I met Saint-Just.", {"Saint-Just"}),
        ("Kesto left.", set()),  # nothing says that it is a name
        ("Kesto left. He saw Kesto.", {"Kesto"}),
    ],
)
def test_facts_of_a_reference(reference: str, expected: set[str]) -> None:
    assert facts(reference, DOCUMENT) == expected


def test_share_right_and_the_shuffled_control() -> None:
    references = [["Mara takes bus 84."], ["Mara meets Tarvo at 9."]]
    documents = ["Mara: bus 84", "Mara: Tarvo, 9"]
    predictions = ["Mara takes bus 841.", "Tarvo meets Mara at 9"]
    assert facts_right(references, documents, predictions).share == pytest.approx(4 / 5)
    assert facts_right_shuffled(references, documents, predictions).share == pytest.approx(2 / 5)
    assert facts_right([["so it is"]], ["so"], ["x"]).share is None
