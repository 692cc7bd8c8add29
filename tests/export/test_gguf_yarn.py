"""YaRN and dynamic RoPE in GGUF: llama.cpp's logits are torch's, for YaRN far beyond the original context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from export.gguf_rope import ROPE_FREQS
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.families import make_model

pytestmark = pytest.mark.engine

ORIGINAL, CONTEXT = 64, 512
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL,
    "rope_theta": 10000.0,
}


def logits(artifact: Artifact, ids: list[int]) -> np.ndarray:
    """float32 [len(ids) - 1, vocabulary]."""
    options: dict[str, Any] = {} if artifact.kind == "merged" else {"kv_dtype": "f32"}
    runtime = load_runtime(artifact, threads=1, **options)
    try:
        assert runtime.context_length == CONTEXT
        [found] = runtime.score([(ids[:1], ids[1:])])
    finally:
        runtime.close()
    return found


def exported(tmp_path: Path, family: str, rope: dict[str, Any], **changes: Any) -> tuple[Path, Artifact]:
    folder = make_model(tmp_path / "model", family, rope_parameters=rope, vocab_size=512, **changes)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], threads=1)
    return folder, made


def key(made: Artifact, name: str) -> Any:
    from gguf import GGUFReader

    found = GGUFReader(made.gguf_path).get_field(name)
    return None if found is None else found.contents()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("mistral", {"attention_factor": 1.7}),
        ("mistral", {"mscale": 1.0, "mscale_all_dim": 0.5}),
        ("mistral", {"beta_fast": 8.0, "beta_slow": 2.0}),
        ("mistral", {"truncate": False, "attention_factor": 0.8}),
        ("mistral", {"factor": 3.0, "rope_theta": 500000.0}),  # another factor than the ratio of the contexts
        ("qwen2", {}),
        ("qwen2", {"attention_factor": 0.7}),
        ("qwen3", {"attention_factor": 1.0}),
        ("smollm3", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_logits_beyond_the_original_context(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    folder, made = exported(tmp_path, family, {**YARN, **changes})
    ids = [int(one) for one in np.random.default_rng(0).integers(5, 300, CONTEXT - 2)]
    expected, found = logits(open_artifact(folder), ids), logits(made, ids)
    assert np.abs(found - expected).max() < 1e-3
    plain = make_model(
        tmp_path / "plain", family, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, vocab_size=512
    )
    assert np.abs(logits(open_artifact(plain), ids) - expected)[ORIGINAL:].max() > 0.1, "YaRN matters here"


def test_the_keys_that_hosts_read(tmp_path: Path) -> None:
    _, made = exported(tmp_path, "qwen2", YARN)
    assert key(made, "qwen2.rope.scaling.type") == "yarn"
    assert key(made, "qwen2.rope.scaling.factor") == 8.0
    assert key(made, "qwen2.rope.scaling.original_context_length") == ORIGINAL
    assert key(made, "qwen2.rope.scaling.attn_factor") == pytest.approx(1.0)
    assert key(made, "qwen2.context_length") == CONTEXT


def test_other_betas_become_factors_of_their_own(tmp_path: Path) -> None:
    from gguf import GGUFReader

    _, made = exported(tmp_path, "mistral", {**YARN, "beta_fast": 8.0})
    assert key(made, "llama.rope.scaling.type") == "none"
    factors = next(tensor.data for tensor in GGUFReader(made.gguf_path).tensors if tensor.name == ROPE_FREQS)
    assert factors.min() == 1.0
    assert factors.max() == 8.0


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3", {"beta_fast": 16.0}, "beta_fast 16.0: llama.cpp has beta_fast 32"),
        ("smollm3", {"truncate": False}, "truncate False"),
        ("gemma2", {}, "RoPE scaling 'yarn'"),
        ("mistral", {"factor": 0.5}, "YaRN's factor 0.5"),
    ],
)
def test_what_llama_cpp_blends_otherwise_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(AssayError, match=r"cannot be written as a llama\.cpp") as raised:
        exported(tmp_path, family, {**YARN, **changes})
    assert said in str(raised.value)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_dynamic_scaling_changes_nothing_up_to_the_context(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    folder, made = exported(tmp_path, family, rope)
    assert "dynamic RoPE scaling sets in beyond 512 tokens" in capsys.readouterr().err
    ids = [int(one) for one in np.random.default_rng(0).integers(5, 300, CONTEXT)]
    assert np.abs(logits(made, ids) - logits(open_artifact(folder), ids)).max() < 1e-3
