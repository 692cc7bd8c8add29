"""`assay run` on a base that is a GGUF: a folder is made of it once, and the adapter is trained on that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.model_folder import resolve_model
from contract.recipe import load_recipe
from export.to_gguf import export_gguf
from flow.run import run_recipe
from tests.flow.test_run import recipe, rows
from tests.tiny import make_llama, write_jsonl

pytestmark = pytest.mark.engine


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    model = make_llama(tmp_path / "model")
    [made] = export_gguf(open_artifact(model), tmp_path / "gguf", quants=["q8_0"], threads=1)
    os.link(made.gguf_path, tmp_path / "base.gguf")
    for name, count in (("train", 12), ("valid", 4), ("test", 4)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, {"train": 0, "valid": 50, "test": 80}[name]))
    return recipe(tmp_path, Path("base.gguf"), train={"max_steps": 2, "evaluations": 1})


def test_a_gguf_is_imported_once(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe_file.parent / "run"
    first = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert first.done == ["base", "adapter"]
    base = first.artifacts["base"]
    assert base.path == out / "base"
    assert first.artifacts["adapter"].parent("base").digest == base.digest  # type: ignore[union-attr]
    assert "what its quantization cost the model cannot be told" in capsys.readouterr().err
    again = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert again.skipped == ["base", "adapter"]
    (recipe_file.parent / "base.gguf").unlink()
    os.link(_other(recipe_file.parent), recipe_file.parent / "base.gguf")
    other = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert other.done == ["base", "adapter"], "another file is another base"


def _other(folder: Path) -> Path:
    [made] = export_gguf(open_artifact(make_llama(folder / "m2", seed=5)), folder / "g2", quants=["q8_0"], threads=1)
    return made.gguf_path


def test_other_commands_say_what_to_type(recipe_file: Path) -> None:
    gguf = recipe_file.parent / "base.gguf"
    with pytest.raises(AssayError, match=f"assay import {gguf} --out FOLDER"):
        resolve_model(gguf)
