"""docs/evaluation-schema.md names every field, type, value, column and version that there is, and no other."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

from contract import history, verdict
from evalsuite import results
from evalsuite.metrics.buckets import BUCKETS
from evalsuite.report.terminal import csv_table
from evalsuite.results import RESULTS_SCHEMA
from tests.evalsuite.made_results import make_results, make_verdicts

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evaluation-schema.md").read_text(encoding="utf-8")
CLASSES = {
    found.__name__: found
    for module in (results, verdict, history)
    for found in vars(module).values()
    if is_dataclass(found) and isinstance(found, type) and found.__module__ == module.__name__
    if found is not history.Standing  # worked out, never written
}


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    [body] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for line in body.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_dataclass_has_a_section() -> None:
    assert set(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_types_are_those_of_the_program(name: str) -> None:
    said = [(field.strip("`"), kind) for field, kind, _ in rows_under(f"`{name}`")]
    assert said == [(field.name, field.type) for field in fields(CLASSES[name])]
    assert all(meaning for _, _, meaning in rows_under(f"`{name}`"))


@pytest.mark.parametrize(
    "values", [results.Purpose, results.Role, results.TargetSet, results.Stop, results.RowKind, verdict.Outcome]
)
def test_every_value_is_named(values: object) -> None:
    def leaves(kind: object) -> list[str]:
        return [leaf for part in get_args(kind) for leaf in leaves(part)] if get_args(kind) else [str(kind)]

    assert all(f"`{value}`" in PAGE for value in leaves(values))


def test_the_versions_are_those_of_the_program() -> None:
    assert re.findall(r"\*\*(\d+)\*\*", PAGE) == [str(RESULTS_SCHEMA), str(history.HISTORY_SCHEMA)]


def test_columns_are_those_of_the_program() -> None:
    made = make_results()
    columns = next(csv.reader(io.StringIO(csv_table(made, make_verdicts()))))
    metrics = set(made.rows[0].task.scores)
    documented = {name for cell, _ in rows_under("metrics.csv") for name in re.findall(r"`(\w+)`", cell)}
    written = set()
    for column in columns:
        name = re.sub(r"_(low|high)$", "", column)
        if name not in metrics:
            name = re.sub(r"_(gold|greedy)$", "_SET", name)
            written.add("bucket_NAME" if name.removeprefix("bucket_") in BUCKETS else name)
    assert written == documented


def test_every_metric_is_explained_on_the_page_that_is_linked() -> None:
    from evalsuite.report.scores import NAMES

    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for name in NAMES:
        family, _, last = name.rpartition("_")
        assert f"`{name}`" in text or (f"`_{last}`" in text and family in text) or f"`{family}" in text, name
