"""The commands: results on stdout, JSON on request, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contract.artifact import new_artifact
from contract.errors import AssayError
from export.cli import export
from flow.cli import doctor_command
from flow.merge_cli import merge
from tests.export.makers import edit_json, edit_tensors
from tests.export.peft_makers import make_peft

pytestmark = pytest.mark.engine


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


@pytest.mark.parametrize("words", [["gguf", "--quant", "f16"], ["lora-gguf"]], ids=lambda words: words[0])
def test_an_adapter_trained_on_nf4_is_said_aloud(tmp_path: Path, adapter_folder: Path, words: list[str]) -> None:
    for quant in ("nf4", "w16"):
        with new_artifact(tmp_path / quant, "adapter", "a", details={"trained_on": {"quant": quant}}) as draft:
            shutil.copytree(adapter_folder, draft.path, dirs_exist_ok=True)
        command = [words[0], str(draft.finished.path), "--out", str(tmp_path / f"{quant}-out"), *words[1:]]
        result = CliRunner().invoke(export, command)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("--base auto") == (1 if quant == "nf4" else 0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target_modules": 5}, "target_modules = 5: not a list of names"),
        ({"exclude_modules": [5]}, r"exclude_modules = \[5\]: not a list of names"),
        ({"modules_to_save": "lm_head"}, "modules_to_save = 'lm_head': not a list of names"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5: not a text"),
        ({"revision": 5}, "revision = 5: not a text"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern = .*: not a number for each name"),
        ({"rank_pattern": {"q_proj": [8]}}, "rank_pattern = .*: not a number for each name"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern = .*: not a number for each name"),
        ({"alpha_pattern": {"q_proj": [8]}}, "alpha_pattern = .*: not a number for each name"),
        ({"trainable_token_indices": ["a"]}, "trainable_token_indices = .*: not lists of token ids"),
        ({"r": [8]}, r"r: \[8\], not what a LORA adapter needs"),
        ({"lora_alpha": float("nan")}, "lora_alpha: nan, not what a LORA adapter needs"),
        ({"lora_alpha": 1e308}, r"lora_alpha: 1e\+308, not what a LORA adapter needs"),
        ({"new_setting": True}, "new_setting = True: not known here\n.*merge_and_unload"),
    ],
)
def test_broken_adapter_settings_are_refused(
    tmp_path: Path, adapter_folder: Path, changes: dict[str, Any], match: str
) -> None:
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    edit_json(folder / "adapter_config.json", **changes)
    result = CliRunner().invoke(merge, [str(folder), "--out", str(tmp_path / "merged")])
    with pytest.raises(AssayError, match=match):
        raise result.exception or AssertionError(result.output)


def test_a_value_that_is_not_finite_is_not_called_too_large(tmp_path: Path, llama_folder: Path) -> None:
    from peft import AdaLoraConfig

    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_r=4, lora_alpha=8, total_step=9)
    folder = make_peft(tmp_path / "a+b", llama_folder, config)
    factors = {"lora_A": 1e38, "lora_E": 100.0}  # each is finite, E·A is not
    edit_tensors(
        folder / "adapter_model.safetensors",
        lambda tensors: [
            tensor.fill_(factor) for key, tensor in tensors.items() for part, factor in factors.items() if part in key
        ],
    )
    command = ["lora-gguf", str(folder), "--out", str(tmp_path / "lora")]
    unnamed = CliRunner().invoke(export, command).exception
    assert isinstance(unnamed, AssayError)
    assert "--name" in str(unnamed.hint)
    refused = CliRunner().invoke(export, [*command, "--name", "a"]).exception
    assert isinstance(refused, AssayError)
    assert "is not finite" in str(refused)


def test_the_doctor_reads_the_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flow import doctor

    monkeypatch.setattr(doctor, "examine", lambda: pytest.fail("the round trip was made"))
    (tmp_path / "bad.yaml").write_text("nonsense: true\n")
    result = CliRunner().invoke(doctor_command, ["--recipe", str(tmp_path / "bad.yaml")])
    assert isinstance(result.exception, AssayError)
