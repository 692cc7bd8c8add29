"""The commands: results on stdout, JSON on request, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from contract.errors import AssayError
from export.cli import export
from flow.merge_cli import merge


def test_merge_and_export_print_json(tmp_path: Path, adapter_folder: Path) -> None:
    runner = CliRunner()
    merged = runner.invoke(merge, [str(adapter_folder), "--out", str(tmp_path / "merged"), "--json"])
    assert merged.exit_code == 0
    told = json.loads(merged.stdout)
    assert told["kind"] == "merged"
    assert told["details"]["dtype"] == "float16"
    made = runner.invoke(
        export, ["gguf", told["path"], "--out", str(tmp_path / "gguf"), "--quant", "F16,q8_0", "--json"]
    )
    assert made.exit_code == 0
    assert [row["details"]["quant"] for row in json.loads(made.stdout)["artifacts"]] == ["f16", "q8_0"]


def test_merge_tells_what_cleaning_changed(tmp_path: Path, adapter_folder: Path) -> None:
    result = CliRunner().invoke(merge, [str(adapter_folder), "--out", str(tmp_path / "merged"), "--dtype", "float32"])
    assert result.exit_code == 0
    assert "tokenizer: taken from the base" in result.stdout


def test_bad_input_reaches_the_front_door(tmp_path: Path, llama_folder: Path) -> None:
    result = CliRunner().invoke(merge, [str(llama_folder), "--out", str(tmp_path / "merged")])
    assert isinstance(result.exception, AssayError)


def test_a_failed_check_exits_with_1(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import check_gguf

    monkeypatch.setattr(check_gguf, "stored_type", lambda tensor, float_type: "float32")
    monkeypatch.setattr(check_gguf, "ERROR_LIMITS", {"Q8_0": 1e-6})
    result = CliRunner().invoke(export, ["gguf", str(llama_folder), "--out", str(tmp_path / "gguf"), "--quant", "q8_0"])
    assert isinstance(result.exception, AssayError)
    assert result.exception.exit_code == 1  # what the front door leaves with
    assert "is not what it was made from" in str(result.exception)
    assert not list((tmp_path / "gguf").iterdir())
