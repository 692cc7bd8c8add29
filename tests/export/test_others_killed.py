"""ONNX folders and LoRA GGUFs, killed at random: a whole one or none, and the next export goes through."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import open_artifact
from tests.export.killing import kill_at_random_moments
from tests.tiny import make_adapter

pytestmark = pytest.mark.engine

EXPORTS = {
    "onnx": (
        "from export.to_onnx import export_onnx",
        "export_onnx(model, out, precisions=['int8'], threads=1)",
        "int8",
        16,
    ),
    "lora-gguf": (
        "from export.lora_gguf import export_lora_gguf",
        "export_lora_gguf(model, out / 'lora')",
        "lora",
        50,
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_killed_at_random_moments(tmp_path: Path, llama_folder: Path, kind: str) -> None:
    setup, work, name, moments = EXPORTS[kind]
    # of so high a rank that writing takes its time
    model = llama_folder if kind == "onnx" else make_adapter(tmp_path / "adapter", llama_folder, r=256)
    before = open_artifact(model).digest
    out = tmp_path / "out"
    kill_at_random_moments(model, out, moments, setup=setup, work=work)
    expected = open_artifact(out / "warm" / name, verify=True).digest
    caught = 0
    for number in range(moments):
        folder = out / str(number)
        left = [path.name for path in folder.iterdir()] if folder.exists() else []
        if name in left:
            assert left == [name]
            assert open_artifact(folder / name, verify=True).digest == expected
        else:
            assert all(entry.startswith(f".{name}.partial-") for entry in left)
            caught += bool(left)
    print(f"{caught} of {moments} killed while writing")
    assert caught >= 2
    assert open_artifact(model).digest == before
