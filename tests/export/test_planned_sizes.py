"""Sizes and types are known before a weight is read: those of the files that are written afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export.imatrix import Calibration
from export.planned_sizes import planned_sizes
from export.quantize import LADDER, NEED_MATRIX
from export.to_gguf import export_gguf
from tests.evalsuite.chain import examples
from tests.tiny import make_llama

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 64, "intermediate_size": 96, "tie": False}])
def test_plans_are_the_files(tmp_path: Path, settings: dict[str, int]) -> None:
    """The second model's columns fit few types, so that most tensors fall back to others."""
    model = open_artifact(make_llama(tmp_path / "model", layers=1, dtype="bfloat16", **settings))
    quants = [quant for quant in LADDER if quant not in NEED_MATRIX]
    exact, planned = planned_sizes(model, quants, with_matrix=False, name="named")
    assert exact == "bf16"
    made = export_gguf(model, tmp_path / "gguf", quants=quants, threads=1, name="named")
    for quant, artifact in zip(quants, made, strict=True):
        assert planned[quant].size_bytes == artifact.size_bytes, quant
        for key in ("tensor_types", "bits_per_weight", "fallbacks"):
            assert getattr(planned[quant].types, key) == artifact.details[key], quant


def test_a_matrix_changes_the_mixtures(tmp_path: Path, llama_folder: Path) -> None:
    model = open_artifact(llama_folder)
    quants = ["q8_0", "q4_k_m", "iq3_xxs", "q2_k", "iq2_m"]
    planned = planned_sizes(model, quants, with_matrix=True)[1]
    made = export_gguf(model, tmp_path, quants=quants, threads=1, imatrix=Calibration(examples(), 1))
    for quant, artifact in zip(quants, made, strict=True):
        assert planned[quant].types.tensor_types == artifact.details["tensor_types"]
        assert artifact.size_bytes == planned[quant].size_bytes
    without = planned_sizes(model, quants, with_matrix=False)[1]
    assert without["iq3_xxs"].types.tensor_types != planned["iq3_xxs"].types.tensor_types


def test_what_cannot_be_expressed_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    [gguf] = export_gguf(open_artifact(llama_folder), tmp_path, quants=["q8_0"], threads=1)
    with pytest.raises(AssayError, match="cannot be exported"):
        planned_sizes(gguf, ["q8_0"], with_matrix=False)
