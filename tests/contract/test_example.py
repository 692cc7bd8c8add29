"""Reading examples: formats, mapping, several references, and messages that name file, line and field."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.example import Columns, Example, read_examples, sha256_of_rows, write_examples
from tests.tiny import write_jsonl

ROWS = [
    {"id": "a", "document": "Mara: hi", "summary": "Mara greets."},
    {"id": "b", "document": "Olin: 你好, bye", "summary": "Olin leaves."},
]


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    wanted = [Example(r["id"], r["document"], (r["summary"],)) for r in ROWS]
    assert read_examples(write_jsonl(tmp_path / "x.jsonl", ROWS)) == wanted
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "document", "summary"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert read_examples(tmp_path / "x.csv") == wanted
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert read_examples(tmp_path / "x.parquet") == wanted
    write_examples(tmp_path / "y.jsonl", wanted)
    assert read_examples(tmp_path / "y.jsonl") == wanted


def test_columns_and_several_references(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"k": 7, "t": "doc", "s1": "one", "s2": ["two", "three"]}])
    assert read_examples(path, Columns("k", "t", ("s1", "s2"))) == [Example("7", "doc", ("one", "two", "three"))]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"document": "x", "summary": ""}], 'x.jsonl:1: field "summary" is empty'),
        ([{"document": "x", "summary": 3}], 'x.jsonl:1: field "summary": expected text, got int'),
        ([*ROWS, {"id": "a", "document": "x", "summary": "y"}], 'x.jsonl:3: id "a" was already used at'),
        ([{"document": "a\x00b", "summary": "y"}], "NUL"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(AssayError, match="problem") as refusal:
        read_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    assert message in str(refusal.value)


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"document": "a", "summary": "b"}\n{oops\n')
    with pytest.raises(AssayError, match="not JSON") as refusal:
        read_examples(tmp_path / "x.jsonl")
    assert "x.jsonl:2" in str(refusal.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(AssayError, match="no example"):
        read_examples(tmp_path / "empty.jsonl")
    with pytest.raises(AssayError, match="no such data file"):
        read_examples(tmp_path / "none.jsonl")
    path = write_jsonl(tmp_path / "x.jsonl", [{"dialog": "a", "summary": "b"}])
    with pytest.raises(AssayError, match="no document column"):
        read_examples(path)
    with pytest.raises(AssayError, match='no column "dialogg"') as refusal:
        read_examples(path, Columns(document="dialogg"))
    assert 'did you mean "dialog"?' in str(refusal.value)
    (tmp_path / "x.csv").write_bytes(b"document,summary\n\xff\xfe,b\n")
    with pytest.raises(AssayError, match="not UTF-8"):
        read_examples(tmp_path / "x.csv")


def test_a_hub_dataset_that_cannot_be_reached_is_one_message() -> None:
    with pytest.raises(AssayError, match="hub dataset could not be loaded"):
        read_examples("hf:nobody/nothing@test")


def test_half_a_surrogate_pair_and_broken_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"document": "a\\ud800", "summary": "b"}\n')
    with pytest.raises(AssayError, match="problem") as refusal:
        read_examples(tmp_path / "x.jsonl")
    assert 'x.jsonl:1: field "document" holds half a surrogate pair' in str(refusal.value)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(AssayError, match="not Parquet"):
        read_examples(tmp_path / "x.parquet")


def test_a_row_nested_too_deeply_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(AssayError, match="JSON"):
        read_examples(path)


def test_rows_with_a_lone_surrogate_have_a_digest() -> None:
    odd, plain = Example("a", "\ud800", ("x",)), Example("a", "y", ("x",))
    assert sha256_of_rows([odd]) != sha256_of_rows([plain])
