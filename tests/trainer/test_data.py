"""Splits: what is wrong is named by file, line and field; repeats are joined, leaks dropped, and both reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contract.errors import AssayError
from contract.recipe import Recipe
from flow.train_cli import data
from tests.tiny import write_jsonl
from trainer.data import load_splits
from trainer.lengths import length_report
from trainer.tokenize import targets

pytestmark = pytest.mark.engine


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{n}",
            "dialogue": f"Mara: number {n} goes to room {n * 7}. Olin: thanks, I shall tell them all.",
            "summary": f"Room {n * 7}.",
        }
        for n in range(start, start + count)
    ]


def recipe(base: str = "nowhere/base", **part: Any) -> Recipe:
    return Recipe.model_validate({"name": "t", "model": {"base": base}, "data": part})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", rows(0, 8))
    write_jsonl(tmp_path / "dev.jsonl", rows(8, 2))
    with (tmp_path / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "dialogue", "summary"])
        writer.writeheader()
        writer.writerows(rows(10, 2))
    return tmp_path


def test_a_folder_holds_one_file_per_split(folder: Path) -> None:
    splits = load_splits(recipe(), str(folder))
    assert [len(part) for part in splits.named().values()] == [8, 2, 2]
    assert splits.report.dropped == ()
    assert splits.sha256 == load_splits(recipe(), str(folder)).sha256
    (folder / "valid.jsonl").write_text("")
    with pytest.raises(AssayError, match=r"several: valid\.jsonl, dev\.jsonl"):
        load_splits(recipe(), str(folder))


def test_one_file_is_divided_in_order(folder: Path) -> None:
    source = str(folder / "train.jsonl")
    splits = load_splits(recipe(source=source, split={"train": 5, "valid": 2, "test": 1}))
    assert [example.id for example in splits.valid] == ["r5", "r6"]
    with pytest.raises(AssayError, match="too few documents") as error:
        load_splits(recipe(source=source, split={"train": 5, "valid": 2, "test": 2}))
    assert "expected: 9 documents (train 5, valid 2, test 2)" in str(error.value)
    with pytest.raises(AssayError, match=r"data\.split"):
        load_splits(recipe(), source)


def test_what_is_wrong_is_named_by_file_line_and_field(folder: Path) -> None:
    bad = rows(0, 3)
    bad[1]["dialogue"] = ""
    bad[2]["summary"] = 5
    write_jsonl(folder / "train.jsonl", bad)
    with pytest.raises(AssayError) as error:
        load_splits(recipe(), str(folder))
    assert f'{folder}/train.jsonl:2: field "dialogue" is empty' in str(error.value)
    assert f'{folder}/train.jsonl:3: field "summary": expected text, got int' in str(error.value)


def test_missing_splits_are_named() -> None:
    with pytest.raises(AssayError, match=r"data\.valid, data\.test"):
        load_splits(recipe(train="train.jsonl"))


def test_repeats_are_joined_and_leaks_dropped_and_named(folder: Path) -> None:
    long = " ".join(f"word{n}" for n in range(120))
    same_summary = "They agree to meet at the old mill at nine"
    train = rows(0, 8)
    train += [
        {**train[0], "id": "again", "dialogue": "  " + train[0]["dialogue"].upper(), "summary": "To room 0."},
        {"id": "exact", "dialogue": rows(10, 1)[0]["dialogue"].replace(" ", "\n"), "summary": "x"},
        {"id": "near", "dialogue": long + " more", "summary": "y"},
        {"id": "sum", "dialogue": "Quite another talk about this and that.", "summary": same_summary},
        {"id": "short", "dialogue": "Yet another talk, about nothing at all.", "summary": "Yes."},
    ]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(
        folder / "dev.jsonl",
        [
            *rows(8, 2),
            {"id": "v", "dialogue": long, "summary": "Yes."},
            {"id": "w", "dialogue": "A talk.", "summary": same_summary + "  "},
        ],
    )
    splits = load_splits(recipe(), str(folder))
    found = {(item.id, item.why, item.other_split, item.other_id) for item in splits.report.dropped}
    assert found == {
        ("exact", "leak: same document", "test", "r10"),
        ("near", "leak: near-duplicate", "valid", "v"),
        ("sum", "leak: same summary", "valid", "w"),
    }
    assert [example.id for example in splits.train] == [*(f"r{n}" for n in range(8)), "short"]
    assert splits.train[0].references == ("Room 0.", "To room 0.")
    report = splits.report
    assert (report.rows_read["train"], report.documents_read["train"], report.documents_kept["train"]) == (13, 12, 9)


def test_each_summary_of_a_joined_document_is_trained_on(folder: Path) -> None:
    write_jsonl(folder / "train.jsonl", [*rows(0, 2), {**rows(0, 1)[0], "id": "again", "summary": "To room 0."}])
    trained = list(targets(load_splits(recipe(), str(folder)).train))
    assert [(row_id, summary) for row_id, _, summary in trained] == [
        ("r0", "Room 0."),
        ("r0#2", "To room 0."),
        ("r1", "Room 7."),
    ]


def test_one_file_is_divided_by_documents(tmp_path: Path) -> None:
    """Three rows each, as DialogSum's test: no document is cut in two by a split's end."""
    three = [{**row, "id": f"{row['id']}_{n}", "summary": f"{n}"} for row in rows(0, 4) for n in (1, 2, 3)]
    source = str(write_jsonl(tmp_path / "all.jsonl", three))
    splits = load_splits(recipe(source=source, split={"train": 2, "valid": 1, "test": 1}))
    assert {name: [example.id for example in part] for name, part in splits.named().items()} == {
        "train": ["r0_1", "r1_1"],
        "valid": ["r2_1"],
        "test": ["r3_1"],
    }
    assert splits.report.rows_read == {"train": 6, "valid": 3, "test": 3}
    with pytest.raises(AssayError, match="too few documents") as refusal:
        load_splits(recipe(source=source, split={"train": 10, "valid": 1, "test": 1}))
    assert "got: 4 documents in 12 rows" in str(refusal.value)


def test_a_split_that_leaks_away_is_refused(folder: Path) -> None:
    write_jsonl(folder / "train.jsonl", rows(10, 2))
    with pytest.raises(AssayError, match="train: 2 read, 0 kept"):
        load_splits(recipe(), str(folder))


def test_numbered_rows_get_ids_that_are_unique_over_the_splits(folder: Path) -> None:
    for name, start in (("train", 0), ("dev", 20)):
        write_jsonl(folder / f"{name}.jsonl", [{k: v for k, v in row.items() if k != "id"} for row in rows(start, 2)])
    splits = load_splits(recipe(), str(folder))
    assert splits.report.ids_prefixed
    assert [example.id for example in splits.train] == ["train-000001", "train-000002"]


def test_lengths_say_what_is_cut_and_what_is_refused(folder: Path, llama_folder: Path) -> None:
    train = rows(0, 2)
    train[0]["dialogue"] = "Mara: this goes on and on.\n" * 40
    train[1]["summary"] = "far too long " * 60
    write_jsonl(folder / "train.jsonl", train)
    settings = {"name": "t", "model": {"base": str(llama_folder)}, "train": {"max_length": 200}}
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    chosen = Recipe.model_validate(settings)
    report = length_report(chosen, load_splits(chosen, str(folder)))
    assert report.splits["train"].cut == 1
    assert report.splits["train"].cut_tokens is not None
    assert report.splits["train"].cut_tokens.max > 100
    assert report.splits["train"].refused == ("r1",)
    assert report.splits["test"].cut == 0

    arguments = [str(folder / "recipe.yaml"), "--data", str(folder)]
    printed = CliRunner().invoke(data, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(printed.stdout)["lengths"]["splits"]["train"]["refused"] == ["r1"]
    text = CliRunner().invoke(data, arguments, catch_exceptions=False).stdout
    assert "whose summary does not fit: r1" in text
    # two test documents: said before anything is trained
    sample = json.loads(printed.stdout)["sample"]
    assert (sample["documents"], sample["fewest"]) == (2, 93)
    assert {need["code"]: need["documents"] for need in sample["unshown"]}["eos_rate_loss"] == 72
    assert "eos_rate_loss 0.05 (merged, q4_k_m, f16, q8_0): 72 documents" in text
