"""`assay run` with every weight trained: the trained model is what is exported and measured against."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.recipe import load_recipe
from flow.run import run_recipe
from tests.flow.test_run import recipe, rows
from tests.tiny import write_jsonl

pytestmark = pytest.mark.engine

TRAIN = {"method": "full", "max_steps": 4, "learning_rate": 1e-4}
EXPORT = {"gguf": {"quants": ["q8_0"], "check": "structure"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, start in (("train", 24, 0), ("valid", 6, 500), ("test", 24, 600)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, start))
    return tmp_path


def test_there_is_no_adapter_and_nothing_to_merge(folder: Path, llama_folder: Path) -> None:
    path = recipe(folder, llama_folder, train=TRAIN, export=EXPORT, gate={"require": ["q8_0"]})
    first = run_recipe(load_recipe(path), folder / "run", threads=1)
    assert first.done == ["merged", "gguf/q8_0", "eval"]
    assert set(first.artifacts) == {"base", "merged", "q8_0"}
    assert first.artifacts["merged"].details["train"]["method"] == "full"
    assert first.artifacts["merged"].digest != first.artifacts["base"].digest
    assert [verdict.label for verdict in first.verdicts or []] == ["q8_0"]
    assert run_recipe(load_recipe(path), folder / "run", threads=1).done == []

    longer = recipe(
        folder, llama_folder, train=TRAIN, export=EXPORT, gate={"require": ["q8_0"]}, generate={"max_new_tokens": 9}
    )
    again = run_recipe(load_recipe(longer), folder / "run", threads=1)
    assert again.done == ["gguf/q8_0", "eval"]
    assert again.artifacts["q8_0"].details["generate"]["max_new_tokens"] == 9


def test_a_merge_that_does_not_happen_cannot_be_required(folder: Path, llama_folder: Path) -> None:
    path = recipe(folder, llama_folder, train=TRAIN, export=EXPORT, gate={"require": ["merged", "q8_0"]})
    with pytest.raises(AssayError, match="nothing is merged that could be proven"):
        load_recipe(path)


def test_beams_that_no_engine_has_are_refused_before_anything_is_trained(folder: Path, llama_folder: Path) -> None:
    path = recipe(folder, llama_folder, generate={"num_beams": 4})
    with pytest.raises(AssayError, match="only encoder-decoder models"):
        run_recipe(load_recipe(path), folder / "run", threads=1)
    assert not (folder / "run" / "adapter").exists()
