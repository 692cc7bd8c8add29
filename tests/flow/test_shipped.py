"""What a run ships: the smallest exported artifact that passed, whatever its format."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import new_artifact, open_artifact
from contract.errors import AssayError
from contract.verdict import Outcome, Verdict
from flow.shipped import refused, shipped
from tests.kit.verdicts import basis, write_verdicts


def run_with(folder: Path, **outcomes: Outcome) -> Path:
    (folder / "eval").mkdir(parents=True)
    sizes = {"merged": 9, "f16": 9, "q4_k_m": 4, "onnx-int8": 5}
    verdicts = []
    for label, size in sizes.items():
        kind = "merged" if label == "merged" else "onnx" if "onnx" in label else "gguf"
        path = folder / kind / label.removeprefix("onnx-") if kind != "merged" else folder / "merged"
        path.parent.mkdir(exist_ok=True)
        with new_artifact(path, kind, "t") as draft:
            (draft.path / ("t.gguf" if kind == "gguf" else "weights")).write_bytes(b"x" * size * 1000)
        artifact = draft.finished
        verdict = Verdict(label, artifact.digest, outcomes.get(label.replace("-", "_"), "fail"), ())
        write_verdicts(artifact.verdict_path, [verdict])
        verdicts.append(verdict)
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


def test_what_failed_since_or_is_another_file_now_is_not_shipped(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", f16="pass", q4_k_m="pass")
    q4 = open_artifact(run / "gguf" / "q4_k_m")
    write_verdicts(q4.verdict_path, [Verdict("q4_k_m", q4.digest, "fail", ())], on=basis(25))
    assert shipped(run).path == run / "gguf" / "f16"
    q4.gguf_path.parent.rename(tmp_path / "aside")
    (run / "gguf" / "f16").rename(run / "gguf" / "q4_k_m")
    with pytest.raises(AssayError, match="nothing that was exported has passed"):
        shipped(run)


def test_what_did_not_pass_is_shown_as_serving_refuses_it(tmp_path: Path) -> None:
    said = refused(run_with(tmp_path / "run", merged="pass", f16="pass", q4_k_m="fail", onnx_int8="inconclusive"))
    assert sorted(said) == ["onnx-int8", "q4_k_m"]
    assert all("pass" in text for text in said.values())
