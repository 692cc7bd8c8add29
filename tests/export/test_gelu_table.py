"""Gemma, GPT-2 and T5 1.1 differ from torch by llama.cpp's table of GELU values alone; all else is exact.

llama.cpp rounds GELU's input to half precision, looks its value up in half precision, and takes 0 below -10 and the
input itself above 10. So the difference goes where the inputs lie beyond, or where torch computes GELU the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.families import make_model
from tests.export.makers import edit_tensors
from tests.said import say_at_the_end
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

# of what goes into GELU, and what makes up for it behind
SCALED = {
    "gemma2": ("mlp.gate_proj.weight", "mlp.down_proj.weight"),
    "gemma3": ("mlp.gate_proj.weight", "mlp.down_proj.weight"),
    "gpt2": ("mlp.c_fc.", "mlp.c_proj.weight"),
    "t5": ("DenseReluDense.wi_0.weight", "DenseReluDense.wo.weight"),
}
LONG = "Mara asks Olin whether room 527 is free at nine, and Tom counts the crowns. " * 4


def make(folder: Path, name: str, **settings: Any) -> Path:
    return make_t5(folder, **settings) if name == "t5" else make_model(folder, name, **settings)


def logits(artifact: Artifact, *, seq2seq: bool) -> np.ndarray:
    """float32 [positions, vocabulary], after many prompts of T5, all through one text of the others."""
    runtime = load_runtime(artifact, threads=1, **({"kv_dtype": "f32"} if artifact.kind == "gguf" else {}))
    try:
        ids = runtime.encode_completion([], LONG)
        if seq2seq:
            return np.concatenate(list(runtime.score([(ids[: 9 + 8 * n], ids[n : n + 40]) for n in range(20)])))
        return np.concatenate(list(runtime.score([(ids[:1], ids[1:])])))
    finally:
        runtime.close()


@pytest.fixture
def as_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Torch computes GELU as llama.cpp does, until this is undone (ggml_vec_gelu_f32, ggml_vec_geglu_f32)."""
    import torch
    from transformers.activations import GELUTanh, NewGELUActivation

    def table(self: Any, values: torch.Tensor) -> torch.Tensor:
        looked_up = torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()
        return torch.where(values <= -10, 0.0, torch.where(values >= 10, values, looked_up))

    monkeypatch.setattr(GELUTanh, "forward", table)
    monkeypatch.setattr(NewGELUActivation, "forward", table)
    return monkeypatch


# a value that falls between two halves otherwise, here and there, is not worth 1e-3 in so many layers
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gemma2", {}),
        ("gemma3", {"num_hidden_layers": 2}),
        ("gpt2", {}),
        ("t5", {"initializer_factor": 0.7}),
    ],
)
def test_with_the_same_table_torch_agrees(
    tmp_path: Path, name: str, settings: dict[str, Any], as_llama_cpp: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", name, **settings)
    [full] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], threads=1)
    seq2seq = name == "t5"
    found, as_table = (logits(artifact, seq2seq=seq2seq) for artifact in (full, open_artifact(folder)))
    as_llama_cpp.undo()
    before = np.abs(found - logits(open_artifact(folder), seq2seq=seq2seq)).max(axis=1)
    left = np.abs(found - as_table).max(axis=1)
    say_at_the_end(
        f"gelu {name}",
        f"{name} F32, GELU by table in torch: largest difference {left.max():.2g}, median row {np.median(left):.2g}; "
        f"else {before.max():.2g}, {np.median(before):.2g}",
    )
    assert left.max() < 1e-3
    assert 5 * np.median(left) < np.median(before)


@pytest.mark.parametrize("name", SCALED)
def test_beyond_the_table_every_layer_is_exact(tmp_path: Path, name: str) -> None:
    """Every layer of the family, GELU's inputs a thousand times as large: nearly all of them beyond ±10."""
    folder, (before, behind) = make(tmp_path / "model", name), SCALED[name]

    def steepen(tensors: dict[str, Any]) -> None:
        assert [tensors[key].mul_(1000.0) for key in tensors if before in key]
        assert [tensors[key].div_(1000.0) for key in tensors if key.endswith(behind)]

    edit_tensors(folder / "model.safetensors", steepen)
    [full] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], threads=1)
    found, expected = (logits(artifact, seq2seq=name == "t5") for artifact in (full, open_artifact(folder)))
    worst = float(np.abs(found - expected).max())
    say_at_the_end(f"gelu beyond {name}", f"{name} F32, GELU's inputs beyond its table: largest difference {worst:.2g}")
    assert worst < 1e-4


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt2"])
def test_as_transformers_initialises_them_they_agree_anyhow(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model", name, initializer_range=0.02)
    [full] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], threads=1, check="logits")
    assert full.manifest.measurements["logits"]["max_abs"] < 1e-3
    found, expected = (logits(artifact, seq2seq=False) for artifact in (full, open_artifact(folder)))
    assert np.abs(found - expected).max() < 1e-3
