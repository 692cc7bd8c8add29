"""What a run ships: the smallest exported artifact that passed, whatever its format."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import new_artifact
from contract.errors import AssayError
from contract.verdict import Outcome, Verdict, write_verdicts
from flow.shipped import shipped


def run_with(folder: Path, **outcomes: Outcome) -> Path:
    (folder / "eval").mkdir(parents=True)
    sizes = {"merged": 9, "f16": 9, "q4_k_m": 4, "onnx-int8": 5}
    for label, size in sizes.items():
        kind = "merged" if label == "merged" else "onnx" if "onnx" in label else "gguf"
        path = folder / kind / label.removeprefix("onnx-") if kind != "merged" else folder / "merged"
        path.parent.mkdir(exist_ok=True)
        with new_artifact(path, kind, "t") as draft:
            (draft.path / ("t.gguf" if kind == "gguf" else "weights")).write_bytes(b"x" * size * 1000)
    verdicts = [Verdict(label, "0" * 64, outcomes.get(label.replace("-", "_"), "fail"), ()) for label in sizes]
    write_verdicts(folder / "eval" / "verdict.json", verdicts)
    return folder


def test_the_smallest_that_passed(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", merged="pass", f16="pass", q4_k_m="inconclusive", onnx_int8="pass")
    assert shipped(run).path == run / "onnx" / "int8"
    run = run_with(tmp_path / "other", merged="pass", q4_k_m="pass", onnx_int8="pass")
    assert shipped(run).path == run / "gguf" / "q4_k_m"


def test_a_merged_model_alone_is_nothing_to_ship(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="nothing that was exported has passed"):
        shipped(run_with(tmp_path / "run", merged="pass"))
