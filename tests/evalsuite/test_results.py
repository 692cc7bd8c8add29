from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from contract.errors import AssayError
from evalsuite.results import Prediction, read_predictions, read_results, write_predictions, write_results
from tests.evalsuite.made import results


def test_metrics_come_back_as_they_were(tmp_path: Path) -> None:
    made = results()
    write_results(tmp_path / "metrics.json", made)
    assert read_results(tmp_path) == made


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"rows": [{"label": "x"}]},
        {"more": 1},
        {"max_new_tokens": "9"},
        {"require": "f16"},
        {"signatures": 3},
    ],
)
def test_other_metrics_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    body = {**dataclasses.asdict(results()), **change}
    (tmp_path / "metrics.json").write_text(json.dumps(body))
    with pytest.raises(AssayError, match="evaluation"):
        read_results(tmp_path)


def test_not_a_number_is_not_written(tmp_path: Path) -> None:
    made = results()
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "metrics.json", dataclasses.replace(made, limits={"x": float("nan")}))
    assert not (tmp_path / "metrics.json").exists()


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [Prediction("a", "Ödön: hi\nB", ("one", "two"), "said 'hi'\n…", "eos", 5, {"rougeL": 12.5}, ("cut_off",))]
    write_predictions(tmp_path / "q4_k_m.jsonl", rows)
    assert read_predictions(tmp_path / "q4_k_m.jsonl") == rows
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(AssayError, match="not a prediction"):
        read_predictions(tmp_path / "bad.jsonl")


def _damaged(**change: object) -> bytes:
    row = {**dataclasses.asdict(Prediction("a", "d", ("r",), "p", "eos", 5, {"rougeL": 1.0}, ())), **change}
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        _damaged(scores=3),
        _damaged(scores={}),
        _damaged(scores={"rougeL": float("nan")}),
        _damaged(references="one"),
        _damaged(stop="stop"),
    ],
)
def test_a_damaged_prediction_is_one_message(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "merged.jsonl").write_bytes(_damaged() + b"\n" + line + b"\n")
    with pytest.raises(AssayError, match=r"not a prediction(.|\n)*merged\.jsonl:2"):
        read_predictions(tmp_path / "merged.jsonl")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"schema": NaN}'])
def test_damaged_metrics_are_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(AssayError, match="cannot be read"):
        read_results(tmp_path)
