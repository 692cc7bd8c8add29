"""Holds the sample dialogues to their promises: varied, disjoint between splits, reproducible."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
from rouge_score import rouge_scorer

from assets import corpus, dialogues
from assets.dialogues import SIZES, TOPICS, english_words, form
from assets.names import SPLITS, entities, split_of

FOLDER = Path(dialogues.__file__).parent / "dialogues"
CORRECTED = re.compile(
    r"(?:No, sorry|Wait, no|Sorry, I meant|Oh no, it's|No, my mistake|No, I misspoke"
    r"|I did, but|I got the|One more thing, the|Hold on, I said) "
)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()]
        for split in SPLITS
    }


def everything(splits: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [row for rows in splits.values() for row in rows]


def rouge_l(pairs: list[tuple[str, str]]) -> float:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return 100 * mean(scorer.score(wanted, given)["rougeL"].fmeasure for wanted, given in pairs)


def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    dialogues.write(tmp_path)
    for name in (*SPLITS, "train-large"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes(), name


def test_the_larger_training_split_begins_with_the_smaller_and_repeats_nothing(
    splits: dict[str, list[dict[str, str]]],
) -> None:
    large = [json.loads(line) for line in (FOLDER / "train-large.jsonl").read_text("utf-8").splitlines()]
    assert large[: len(splits["train"])] == splits["train"]
    assert len(large) == len({row["dialogue"] for row in large}) == 4 * len(splits["train"])
    assert all(split_of(token) == "train" for row in large for token in entities(row["dialogue"] + row["summary"]))


def test_another_seed_gives_other_dialogues() -> None:
    assert dialogues.rows("test", 3, seed=1) != dialogues.rows("test", 3, seed=0)


def test_sizes_ids_and_columns(splits: dict[str, list[dict[str, str]]]) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    assert SIZES["train"] >= 2400
    assert SIZES["valid"] >= 300
    assert SIZES["test"] >= 300
    rows = everything(splits)
    assert all(list(row) == ["id", "dialogue", "summary", "topic"] for row in rows)
    for column in ("id", "dialogue", "summary"):
        assert len({row[column] for row in rows}) == len(rows), column


def test_many_topics_and_summary_forms(splits: dict[str, list[dict[str, str]]]) -> None:
    for name, rows in [*splits.items(), ("all", everything(splits))]:
        forms = Counter(form(row["summary"]) for row in rows)
        assert len({row["topic"] for row in rows}) >= 10, name
        assert len(forms) >= 200, name
        assert forms.most_common(1)[0][1] <= 0.02 * len(rows), forms.most_common(1)


def test_a_form_has_no_names_places_or_numbers() -> None:
    first = form("Tovali from Merisko pays 340 in room 12.")
    assert first == form("Hukusku from Fusenpi pays 95 in room 1204.")
    assert first != form("Tovali from Merisko pays 340 in shop 12.")


def test_no_name_place_or_number_is_shared_by_two_splits(splits: dict[str, list[dict[str, str]]]) -> None:
    known = {word.capitalize() for word in english_words()}
    seen = {}
    for split, rows in splits.items():
        text = " ".join(f"{row['dialogue']} {row['summary']}" for row in rows)
        numbers = set(re.findall(r"\d+", text))
        capitals = set(re.findall(r"\b[A-Z]\w*", text)) - known
        assert all(1 < len(number) < 5 for number in numbers)
        assert all(split_of(token) == split for token in numbers | capitals)
        assert capitals == {token for token in entities(text) if token.isalpha()}
        seen[split] = numbers | capitals
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other], (one, other)


def test_no_made_up_word_is_a_word_of_the_templates(splits: dict[str, list[dict[str, str]]]) -> None:
    names = {token.lower() for row in everything(splits) for token in entities(row["dialogue"])}
    assert not names & english_words()


def test_dialogues_have_two_speakers_and_six_to_fourteen_turns(
    splits: dict[str, list[dict[str, str]]],
) -> None:
    for row in everything(splits):
        speakers = [line.split(": ")[0] for line in row["dialogue"].split("\n")]
        assert len(set(speakers)) == 2, row["id"]
        assert 6 <= len(speakers) <= 14, row["id"]
        assert all(entities(speaker) == [speaker] for speaker in speakers)


def test_summaries_are_short_and_keep_to_the_dialogue(splits: dict[str, list[dict[str, str]]]) -> None:
    for row in everything(splits):
        assert 15 <= len(row["summary"].split()) <= 45, row["id"]
        assert 1 <= row["summary"].count(".") <= 3, row["id"]
        in_dialogue, in_summary = set(entities(row["dialogue"])), set(entities(row["summary"]))
        assert in_summary <= in_dialogue, row["id"]


def test_most_dialogues_mention_names_and_numbers_the_summary_leaves_out(
    splits: dict[str, list[dict[str, str]]],
) -> None:
    rows = everything(splits)
    left_out = [set(entities(row["dialogue"])) - set(entities(row["summary"])) for row in rows]
    assert mean(bool(tokens) for tokens in left_out) >= 0.8
    assert mean(any(token.isdigit() for token in tokens) for tokens in left_out) >= 0.3


def test_a_good_share_is_corrected_and_the_summary_has_the_last_word(
    splits: dict[str, list[dict[str, str]]],
) -> None:
    for rows in splits.values():
        assert mean(bool(CORRECTED.search(row["dialogue"])) for row in rows) >= 0.25
    row = next(row for row in splits["train"] if "No, sorry, " in row["dialogue"])
    right = re.search(r"No, sorry, (\w+)\.", row["dialogue"])
    assert right is not None
    assert right.group(1) in row["summary"]


def test_summaries_are_neither_the_first_lines_nor_those_of_a_similar_dialogue(
    splits: dict[str, list[dict[str, str]]],
) -> None:
    rows = splits["test"]
    lead = [(row["summary"], " ".join(row["dialogue"].split("\n")[:3])) for row in rows]
    assert rouge_l(lead) <= 30
    words = [(set(re.findall(r"\w+", row["dialogue"].lower())), row["summary"]) for row in splits["train"]]
    nearest = []
    for row in rows:
        own = set(re.findall(r"\w+", row["dialogue"].lower()))
        nearest.append((row["summary"], max(words, key=lambda other: len(own & other[0]) / len(own | other[0]))[1]))
    assert rouge_l(nearest) <= 45


def test_every_form_of_a_fact_says_and_summarizes_its_value() -> None:
    for topic in TOPICS:
        for fact in topic.facts:
            for one in fact.forms:
                slot = "{" + fact.value + "}"
                assert slot in one.lines, (topic.name, fact.noun, one)
                assert slot in one.clause, (topic.name, fact.noun, one)
                assert "{w}" not in one.lines + one.clause or fact.words, (topic.name, fact.noun)


def test_the_corpus_has_no_summary_and_nothing_of_valid_and_test() -> None:
    clauses = {re.sub(r"{\w}", "", one.clause) for topic in TOPICS for fact in topic.facts for one in fact.forms}
    for row in corpus.rows(200):
        text = row.get("text") or " ".join(message["content"] for message in row["messages"])
        assert {split_of(token) for token in entities(text)} == {"train"}
        masked = re.sub(r"\b[A-Z]\w+|\d+", "", text)
        assert not [clause for clause in clauses if len(clause) > 25 and clause in masked]


def test_corpus_rows_are_reproducible_and_end_with_an_answer() -> None:
    assert list(corpus.rows(50)) == list(corpus.rows(50))
    chats = [row["messages"] for row in corpus.rows(50) if "messages" in row]
    assert all([m["role"] for m in chat] == ["user", "assistant"] * (len(chat) // 2) for chat in chats)
    assert all("\n\n" in chat[0]["content"] for chat in chats)


def test_probe_questions_are_answered_by_a_copied_word_of_another_split() -> None:
    for row in corpus.probe(50, "valid"):
        asked, answer = row["messages"]
        assert answer["content"] in asked["content"]
        assert split_of(answer["content"]) == "valid"
