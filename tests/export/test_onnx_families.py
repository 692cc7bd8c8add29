"""Every causal family that docs/onnx.md names goes to ONNX and agrees with torch, with and without cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import open_artifact
from export.to_onnx import export_onnx
from tests.export.families import make_model

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("family", ["mistral", "smollm3", "qwen2", "qwen3", "phi3", "gpt2"])
def test_a_family_agrees_with_torch(family: str, tmp_path: Path) -> None:
    model = open_artifact(make_model(tmp_path / family, family))
    exact, small = export_onnx(model, tmp_path / "out", precisions=["fp32", "int8"], check="logits", threads=1)
    figures = exact.manifest.measurements["logits"]
    assert max(figures["full"]["max_abs"], figures["cached"]["max_abs"]) < 1e-3
    assert figures["same_greedy"] == 1.0
    assert small.manifest.measurements["logits"]["cached"]["mean_kl_nats"] < 0.1
    assert small.details["quantization"]["kept_float"] == []
