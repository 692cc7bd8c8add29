"""`assay run` makes its importance matrix from the training split, and makes again what depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.recipe import load_recipe
from export.imatrix import Calibration
from export.to_gguf import export_gguf
from flow.preflight import preflight
from flow.run import run_recipe
from tests.flow.test_run import recipe, rows
from tests.tiny import write_jsonl
from trainer.data import load_splits

pytestmark = pytest.mark.engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, start in (("train", 40, 0), ("valid", 6, 500), ("test", 6, 600)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, start))
    return tmp_path


def test_the_matrix_is_of_the_training_split(folder: Path, llama_folder: Path) -> None:
    def made_of(imatrix: bool) -> Path:
        gguf = {"quants": ["f16", "q4_k_m"], "check": "structure", "imatrix": imatrix}
        return recipe(folder, llama_folder, export={"gguf": gguf}, gate={"require": ["merged", "f16"]})

    first = run_recipe(load_recipe(made_of(True)), folder / "run", threads=1, until="gguf")
    splits = load_splits(load_recipe(made_of(True)))
    recorded = first.artifacts["q4_k_m"].details["imatrix"]
    assert recorded["split"] == "train"
    assert recorded["data_sha256"] == splits.sha256["train"]
    assert recorded["tokens"] == recorded["chunks"] * 512 > 1024
    assert "imatrix" not in first.artifacts["f16"].details

    without = run_recipe(load_recipe(made_of(False)), folder / "run", threads=1, until="gguf")
    assert without.done == ["gguf/q4_k_m"]
    assert "imatrix" not in without.artifacts["q4_k_m"].details
    assert without.artifacts["q4_k_m"].digest != first.artifacts["q4_k_m"].digest

    for held_out in ("valid", "test"):
        merged = open_artifact(folder / "run" / "merged")
        calibration = Calibration(splits.named()[held_out])
        with pytest.raises(AssayError, match=f"the model's {held_out} split"):
            export_gguf(merged, folder / "leak", quants=["q4_k_m"], threads=1, imatrix=calibration)
        assert list((folder / "leak").iterdir()) == []


def test_preflight_sends_a_matrix_along(folder: Path, llama_folder: Path) -> None:
    gguf = {"quants": ["q2_k_s"], "check": "logits", "imatrix": True}
    path = recipe(folder, llama_folder, export={"gguf": gguf}, gate={"require": ["merged"]})
    assert preflight(load_recipe(path), load_splits(load_recipe(path)), device="cpu", threads=1) > 0
