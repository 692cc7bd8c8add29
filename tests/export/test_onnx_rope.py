"""Scaled RoPE and windows in ONNX: torch's logits far beyond the original context, from a config in either form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.model_config import as_written_by_4
from export import onnx_trace
from export.check_failed import CheckFailed
from export.to_onnx import export_onnx
from runtimes import load_runtime
from tests.export.families import make_model
from tests.export.makers import edit_json
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

ORIGINAL, CONTEXT, BASE = 64, 512, 10000.0
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL, "rope_theta": BASE}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn with a factor on attention": {**YARN, "attention_factor": 1.7},
    "yarn with scales": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn with other betas": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn with a factor other than the ratio": {**YARN, "factor": 3.0, "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 8.0, "rope_theta": BASE},
    "llama3": LLAMA3,
}
IDS = [int(one) for one in np.random.default_rng(0).integers(5, 300, CONTEXT - 2)]


def logits(artifact: Artifact) -> np.ndarray:
    """float32 [CONTEXT - 3, vocabulary]."""
    runtime = load_runtime(artifact, threads=1)
    try:
        assert runtime.context_length == CONTEXT
        [found] = runtime.score([(IDS[:1], IDS[1:])])
    finally:
        runtime.close()
    return np.array(found)


def mean_kl_nats(expected: np.ndarray, found: np.ndarray) -> float:
    log_p, log_q = (
        values - np.log(np.exp(values).sum(1, keepdims=True))
        for values in (expected.astype(float), found.astype(float))
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def kinds(artifact: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(artifact.path / "model.onnx", load_external_data=False).graph.node]


def in_words_of_4(folder: Path) -> None:
    config = as_written_by_4(json.loads((folder / "config.json").read_text()))
    assert "rope_parameters" not in config
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "4.57.1"}))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("yarn", 5),
        ("yarn with a factor on attention", 4),
        ("yarn with other betas", 5),
        ("linear", 5),
        ("llama3", 5),
        pytest.param("yarn", 4, marks=pytest.mark.slow),
        pytest.param("yarn with a factor on attention", 5, marks=pytest.mark.slow),
        pytest.param("yarn with scales", 5, marks=pytest.mark.slow),
        pytest.param("yarn with a factor other than the ratio", 5, marks=pytest.mark.slow),
    ],
)
def test_logits_beyond_the_original_context(name: str, form: int, tmp_path: Path) -> None:
    rope = ROPES[name]
    folder = make_llama(tmp_path / "model", dtype="float32", rope_parameters=dict(rope))
    expected = logits(open_artifact(folder))
    if form == 4:
        in_words_of_4(folder)
        np.testing.assert_array_equal(logits(open_artifact(folder)), expected)
    fp32, int8 = export_onnx(
        open_artifact(folder), tmp_path / "out", precisions=["fp32", "int8"], check="logits", threads=1
    )
    found = logits(fp32)
    assert np.abs(found - expected).max() < 1e-3
    assert fp32.manifest.measurements["logits"]["cached"]["positions"] > 4 * ORIGINAL, "in four rows"
    for artifact in (fp32, int8):
        assert kinds(artifact).count("RotaryEmbedding") == 4, "queries and keys of two layers"
    edit_json(
        folder / "config.json",
        rope_scaling=None,
        original_max_position_embeddings=None,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
    )
    plain = logits(open_artifact(folder))
    assert np.abs(plain - expected)[ORIGINAL:].max() > 0.1, "the scaling matters here"
    assert mean_kl_nats(expected, logits(int8)) < 0.1 * mean_kl_nats(expected, plain)


def test_the_check_finds_a_factor_that_a_trace_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_factor(config: dict[str, Any]) -> dict[str, Any]:
        written = as_written_by_4(config)
        return {**written, "rope_scaling": {**written["rope_scaling"], "attention_factor": 1.0}}

    folder = make_llama(tmp_path / "model", dtype="float32", rope_parameters=dict(YARN))
    monkeypatch.setattr(onnx_trace, "as_written_by_4", without_factor)
    with pytest.raises(CheckFailed, match="logits differ"):
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"], check="logits", threads=1)


def test_angles_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": BASE})
    with pytest.raises(AssayError, match="dynamic RoPE"):
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"])


@pytest.mark.parametrize(("family", "window"), [("mistral", CONTEXT), ("phi3", 262144), ("qwen2", CONTEXT)])
def test_a_window_as_long_as_the_context_is_none(family: str, window: int, tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    folder = make_model(tmp_path / "model", family, sliding_window=window, **changes)
    [made] = export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"], check="logits", threads=1)
    assert np.abs(logits(made) - logits(open_artifact(folder))).max() < 1e-3


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2"])
def test_a_shorter_window_is_refused(family: str, tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    folder = make_model(tmp_path / "model", family, sliding_window=CONTEXT - 1, **changes)
    with pytest.raises(AssayError, match="attention over a window"):
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"])
    assert not list((tmp_path / "out").iterdir())
