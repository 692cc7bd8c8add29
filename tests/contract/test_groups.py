"""Rows of one document are one example with several references, whatever they are read from."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import AssayError
from contract.example import Columns, Example, read_examples, sha256_of_rows, write_examples
from contract.groups import group, row_count
from tests.tiny import write_jsonl

DIALOGUES = ["#Person1#: Ms. Dawson, take a dictation.\n#Person2#: Yes, sir.", "#Person1#: Am I late?\n#Person2#: No."]
# as DialogSum's public test set has them: three rows a dialogue, or three columns
ROWS = [
    {"id": f"test_{at}_{n}", "dialogue": dialogue, "summary": f"Summary {n} of {at}.", "topic": "talk"}
    for at, dialogue in enumerate(DIALOGUES)
    for n in (1, 2, 3)
]
WIDE = [
    {"fname": f"test_{at}", "dialogue": dialogue, "topic1": "talk"}
    | {f"summary{n}": f"Summary {n} of {at}." for n in (1, 2, 3)}
    for at, dialogue in enumerate(DIALOGUES)
]
SUMMARIES = [tuple(f"Summary {n} of {at}." for n in (1, 2, 3)) for at in range(2)]


def _csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path.with_suffix(".csv"))


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    return str(write_jsonl(path.with_suffix(".jsonl"), rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return str(path.with_suffix(".parquet"))


def _hub(path: Path, rows: list[dict[str, Any]]) -> str:
    (path / "data").mkdir(parents=True)
    _csv(path / "data" / "test", rows)
    return f"hf:{path}@test"


Write = Callable[[Path, list[dict[str, Any]]], str]


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet, _hub])
@pytest.mark.parametrize(("rows", "ids"), [(ROWS, ["test_0_1", "test_1_1"]), (WIDE, ["test_0", "test_1"])])
def test_three_rows_or_three_columns_are_three_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, rows: list[dict[str, Any]], ids: list[str]
) -> None:
    if write is _hub:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    read = read_examples(write(tmp_path / "x", rows))
    assert [example.id for example in read] == ids
    assert [example.references for example in read] == SUMMARIES
    assert [example.document for example in read] == DIALOGUES
    assert row_count(read) == len(rows)


def test_copies_that_differ_in_case_and_white_space_only(tmp_path: Path) -> None:
    copies = [DIALOGUES[0], DIALOGUES[0].upper(), DIALOGUES[0].replace("\n", "\r\n\r\n  "), f"\u200b{DIALOGUES[0]}\t"]
    rows = [{"id": at, "document": copy, "summary": "One."} for at, copy in enumerate(copies)]
    [example] = read_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    assert example == Example("0", DIALOGUES[0], ("One.",))
    assert example.row_ids == ("0", "1", "2", "3")


def test_an_id_may_come_again_for_its_own_document_only(tmp_path: Path) -> None:
    rows = [{"id": "a", "document": "x y", "summary": "one"}, {"id": "a", "document": "X  y", "summary": "two"}]
    [example] = read_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    assert example.references == ("one", "two")
    assert row_count([example]) == 2
    with pytest.raises(AssayError) as refusal:
        read_examples(write_jsonl(tmp_path / "x.jsonl", [*rows, {"id": "a", "document": "z", "summary": "three"}]))
    assert 'x.jsonl:3: id "a" was already used at' in str(refusal.value)


def test_a_limit_counts_documents_and_takes_their_later_rows(tmp_path: Path) -> None:
    keys = ["a1", "b1", "c1", "a2", "b2", "c2"]
    rows = [{"id": key, "document": f"document {key[0]}", "summary": key} for key in keys]
    found = read_examples(write_jsonl(tmp_path / "x.jsonl", rows), limit=2)
    assert [(example.id, example.references) for example in found] == [("a1", ("a1", "a2")), ("b1", ("b1", "b2"))]
    assert len(read_examples(tmp_path / "x.jsonl", limit=9)) == 3


def test_numbered_columns_go_by_number_and_only_where_there_is_no_plain_one(tmp_path: Path) -> None:
    wide = {"document": "d", "summary_10": "ten", "summary_2": "two"}
    assert read_examples(write_jsonl(tmp_path / "x.jsonl", [wide]))[0].references == ("two", "ten")
    assert read_examples(write_jsonl(tmp_path / "x.jsonl", [wide | {"summary": "plain"}]))[0].references == ("plain",)
    mapped = read_examples(tmp_path / "x.jsonl", Columns(references=("summary_10", "summary")))
    assert mapped[0].references == ("ten", "plain")
    with pytest.raises(AssayError, match="no summary column") as refusal:
        read_examples(write_jsonl(tmp_path / "x.jsonl", [{"document": "d", "summary_of": "x"}]))
    assert "summary1, summary2" in str(refusal.value)


def test_grouping_again_changes_nothing_and_what_is_written_reads_back(tmp_path: Path) -> None:
    read = read_examples(_jsonl(tmp_path / "x", ROWS))
    again = group(read)
    assert again == read
    assert [example.row_ids for example in again] == [example.row_ids for example in read]
    write_examples(tmp_path / "y.jsonl", read)
    assert read_examples(tmp_path / "y.jsonl") == read
    assert sha256_of_rows(read) == sha256_of_rows(group(Example(r["id"], r["dialogue"], (r["summary"],)) for r in ROWS))
