"""Every family's GGUF computes what torch computes; what llama.cpp cannot express of a family is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.runtime import GenerateParams
from export.check_gguf import CheckFailed, check_structure
from export.check_logits import check_logits
from export.gguf_file import plan_gguf
from export.source import open_model
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.families import FAMILIES, make_model
from tests.export.makers import edit_json, edit_tensors, gemma_tokenizer
from tests.tiny import make_adapter

pytestmark = pytest.mark.engine

LONG = "Mara asks Olin whether room 527 is free at nine, and Tom counts the crowns. " * 4
HALF_PRECISION = ("gemma2", "gemma3", "gpt2")  # tests/export/test_gelu_table.py shows that it is that and no more


def export(model: Path, out: Path, *quants: str, **options: Any) -> list[Artifact]:
    return export_gguf(open_artifact(model), out, quants=quants, threads=1, **options)


def logits(artifact: Artifact, ids: list[int]) -> np.ndarray:
    """float32 [len(ids) - 1, vocabulary]."""
    options: dict[str, Any] = {} if artifact.kind == "merged" else {"kv_dtype": "f32"}
    runtime = load_runtime(artifact, threads=1, **options)
    try:
        [found] = runtime.score([(ids[:1], ids[1:])])
    finally:
        runtime.close()
    return found


def raw_ids(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(text).input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_float_files_agree_with_torch(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model", name)
    full, half, brain = export(folder, tmp_path / "gguf", "f32", "f16", "bf16", check="logits")
    found = full.manifest.measurements["logits"]
    assert found["positions"] > 100
    assert found["max_abs"] < (1e-2 if name in HALF_PRECISION else 1e-3)
    assert 0 <= found["mean_kl_nats"] < 1e-6
    assert half.manifest.measurements["logits"]["mean_kl_nats"] < 1e-4
    assert brain.manifest.measurements["logits"]["mean_kl_nats"] < 1e-3


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_texts_longer_than_the_window(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model", name)
    [full] = export(folder, tmp_path / "gguf", "f32")
    ids = raw_ids(folder, LONG)
    window = FAMILIES[name][1]["sliding_window"]
    assert len(ids) > 2 * window
    found, expected = logits(full, ids), logits(open_artifact(folder), ids)
    assert np.abs(found - expected).max() < 1e-2
    unslid = make_model(tmp_path / "unslid", name, sliding_window=512)
    assert np.abs(logits(open_artifact(unslid), ids) - expected)[window:].max() > 0.1, "the window matters here"


def test_a_window_llama_cpp_does_not_slide_becomes_the_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "model", "mistral-window")
    [full] = export(folder, tmp_path / "gguf", "f32", check="logits")
    assert "the context is 96 tokens instead of 512" in capsys.readouterr().err
    runtime = load_runtime(full, threads=1)
    try:
        assert runtime.context_length == 96
    finally:
        runtime.close()


def test_long_and_short_rope_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One runtime, a long text between two short ones: each gets the factors that torch takes for its length."""
    folder = make_model(tmp_path / "model", "phi3-longrope")
    [full] = export(folder, tmp_path / "gguf", "f32")
    assert "more than 512 tokens" in capsys.readouterr().err
    ids = raw_ids(folder, LONG * 6)[:700]
    assert len(ids) == 700
    rows = [ids[:300], ids, ids[:310]]
    found = []
    for artifact, options in ((full, {"kv_dtype": "f32"}), (open_artifact(folder), {})):
        runtime = load_runtime(artifact, threads=1, **options)
        try:
            found.append(list(runtime.score([(row[:1], row[1:]) for row in rows])))
        finally:
            runtime.close()
    assert all(np.abs(ours - torchs).max() < 1e-3 for ours, torchs in zip(*found, strict=True))
    assert np.abs(found[0][1][:299] - found[0][0]).max() > 0.1, "the factors differ"
    assert np.abs(found[1][0] - logits(open_artifact(folder), rows[0])).max() < 1e-4, "and do not depend on neighbours"


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_both_runtimes_write_the_same_text(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model", name)
    [full] = export(folder, tmp_path / "gguf", "f32")
    prompts = [raw_ids(folder, LONG)[:length] for length in (30, 90)]
    params = GenerateParams(max_new_tokens=24)
    texts = []
    for artifact, options in ((open_artifact(folder), {}), (full, {"kv_dtype": "f32"})):
        runtime = load_runtime(artifact, threads=1, **options)
        try:
            texts.append([list(completion.ids) for completion in runtime.generate(prompts, params)])
        finally:
            runtime.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_targets_that_share_a_prompt_are_scored_as_if_alone(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model", name)
    [full] = export(folder, tmp_path / "gguf", "f32")
    ids = raw_ids(folder, LONG)
    prompt, targets = ids[:80], (ids[80:95], ids[20:50])
    runtime = load_runtime(full, threads=1, kv_dtype="f32")
    try:
        together = list(runtime.score([(prompt, target) for target in targets]))
        alone = [next(iter(runtime.score([(prompt, target)]))) for target in targets]
    finally:
        runtime.close()
    for found, expected in zip(together, alone, strict=True):
        assert np.abs(found - expected).max() < 1e-2
    assert np.abs(together[0][:10] - together[1][:10]).max() > 0.1


def test_rope_bases_in_the_newer_form_of_config_json(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "gemma3")
    edit_json(
        folder / "config.json",
        rope_scaling=None,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        },
    )
    metadata = plan_gguf(open_model(open_artifact(folder)).source(tmp_path)).model.metadata
    assert metadata["gemma3.rope.freq_base"] == 77000.0
    assert metadata["gemma3.rope.freq_base_swa"] == 3000.0
    assert metadata["gemma3.rope.scaling.factor"] == 4.0


def test_gpt2_under_the_names_of_the_bare_model(tmp_path: Path) -> None:
    """As the first checkpoints are stored: no prefix, and the causal mask beside the weights."""
    import torch

    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.tril(torch.ones(512, 512)).view(1, 1, 512, 512)

    folder = make_model(tmp_path / "model", "gpt2")
    [plain] = export(folder, tmp_path / "plain", "f16", name="same")
    edit_tensors(folder / "model.safetensors", rename)
    [bare] = export(folder, tmp_path / "bare", "f16", name="same")
    assert bare.manifest.files_digest == plain.manifest.files_digest


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_quantized(tmp_path: Path, name: str) -> None:
    """From bfloat16. Narrow heads make the output projection's columns too few for a block of 256."""
    folder = make_model(tmp_path / "model", name, dtype="bfloat16")
    eight, four = export(folder, tmp_path / "gguf", "q8_0", "q4_k_m", check="logits")
    assert set(eight.details["tensor_types"]) == {"Q8_0", "F32"}
    assert {"Q4_K", "Q6_K"} <= set(four.details["tensor_types"])
    narrow = FAMILIES[name][1].get("head_dim", 64) * 4 < 256
    layers = sum(".attn_output." in line for line in four.details["fallbacks"])
    assert layers == len(four.details["fallbacks"]) == (FAMILIES[name][1]["num_hidden_layers"] if narrow else 0)
    kl = [artifact.manifest.measurements["logits"]["mean_kl_nats"] for artifact in (eight, four)]
    assert 0 < kl[0] < 0.01 < kl[1] < 0.5


def test_learned_positions_are_never_quantized(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_model(tmp_path / "model", "gpt2", dtype="float16")
    [made] = export(folder, tmp_path / "gguf", "q4_k_m", check="logits")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(made.gguf_path).tensors}
    assert types["position_embd.weight"] == "F32"
    assert types["blk.0.attn_qkv.weight"] in ("Q4_K", "Q6_K")
    assert made.details["fallbacks"] == []


def test_gemma_with_its_own_kind_of_tokenizer(tmp_path: Path) -> None:
    ids = {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0}
    folder = make_model(tmp_path / "model", "gemma3", tokenizer=gemma_tokenizer, **ids)
    [made] = export(folder, tmp_path / "gguf", "f16", check="logits")
    runtime = load_runtime(made, threads=1)
    try:
        assert runtime.stop_ids == {1, 5}
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar 100: llama.cpp takes 32"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("gemma2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("qwen2", {"num_attention_heads": 3}, "3 heads of 85 for a hidden size of 256"),
        ("qwen3", {"attention_bias": True}, "attention_bias True"),
        ("qwen3", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "every fourth layer"),
        ("phi3", {"num_key_value_heads": None}, None),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("gpt2", {"n_positions": None}, "n_positions is missing"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], match: str | None
) -> None:
    folder = make_model(tmp_path / "model", name)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(AssayError, match=match):
        export(folder, tmp_path / "gguf", "f16")
    assert not (tmp_path / "gguf").exists() or not list((tmp_path / "gguf").iterdir())


def test_a_null_soft_cap_is_refused(tmp_path: Path) -> None:
    import json

    folder = make_model(tmp_path / "model", "gemma2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_logit_softcapping": None}))
    with pytest.raises(AssayError, match="attn_logit_softcapping is null"):
        export(folder, tmp_path / "gguf", "f16")


def test_an_unknown_family_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3")
    edit_json(folder / "config.json", architectures=["Qwen3MoeForCausalLM"])
    with pytest.raises(AssayError, match="not written for this model family") as error:
        export(folder, tmp_path / "gguf", "f16")
    assert "Qwen3MoeForCausalLM" in str(error.value)
    assert 'did you mean "Qwen3ForCausalLM"' in str(error.value)


def test_a_window_the_flag_switches_off_is_no_window(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen2", sliding_window=64, use_sliding_window=False)
    [made] = export(folder, tmp_path / "gguf", "f32", check="logits")
    runtime = load_runtime(made, threads=1)
    try:
        assert runtime.context_length == 512
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("phi3", {"sliding_window": 262144}),
        ("mistral-window", {"sliding_window": 512}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1, "vocab_size": 520}),
    ],
)
def test_a_window_as_long_as_the_context_is_no_window(
    tmp_path: Path, family: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "model", family, **settings)
    [made] = export(folder, tmp_path / "gguf", "f32")
    assert "sliding window" not in capsys.readouterr().err
    ids = [int(one) for one in np.random.default_rng(0).integers(5, 300, 511)]
    assert np.abs(logits(made, ids) - logits(open_artifact(folder), ids)).max() < 1e-3


def test_windows_of_the_last_layers_shorten_the_context(tmp_path: Path) -> None:
    settings = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    folder = make_model(tmp_path / "model", "qwen2", **settings)
    [made] = export(folder, tmp_path / "gguf", "f32", check="logits")
    runtime = load_runtime(made, threads=1)
    try:
        assert runtime.context_length == 64
    finally:
        runtime.close()


def turned_back(data: Any) -> None:
    """A square Conv1D weight as the checkpoint has it."""
    data[:] = data.T.copy()


def halves_swapped(data: Any) -> None:
    """Up before gate."""
    half = len(data) // 2
    data[:] = np.concatenate([data[half:], data[:half]])


def one_less(data: Any) -> None:
    """A norm's weight without the one that Gemma adds."""
    data[:] -= 1


@pytest.mark.parametrize(
    ("family", "tensor", "change"),
    [
        ("gpt2", "blk.0.attn_output.weight", turned_back),
        ("phi3", "blk.1.ffn_up.weight", halves_swapped),
        ("gemma2", "blk.2.post_ffw_norm.weight", one_less),
        ("qwen3", "blk.0.attn_k_norm.weight", one_less),
    ],
)
def test_damage_is_caught_by_both_checks(tmp_path: Path, family: str, tensor: str, change: Any) -> None:
    from gguf import GGUFReader

    folder = make_model(tmp_path / "model", family)
    [made] = export(folder, tmp_path / "gguf", "f32")
    source = open_model(open_artifact(folder)).source(tmp_path)
    plan = plan_gguf(source)
    check_structure(made.gguf_path, plan, source)
    reader = GGUFReader(made.gguf_path, "r+")
    change(next(one for one in reader.tensors if one.name == tensor).data)
    reader.data.flush()
    with pytest.raises(CheckFailed, match=tensor):
        check_structure(made.gguf_path, plan, source)
    half = plan.model.half_precision_activation
    with pytest.raises(CheckFailed, match="f32: m"):
        check_logits(source, {"f32": made.gguf_path}, 1, half_precision_activation=half)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("gemma2", "gemma2.attn_logit_softcapping"),
        ("gemma2", "gemma2.attention.sliding_window"),
        ("gemma3", "gemma3.rope.freq_base_swa"),
        ("gemma3", "gemma3.attention.sliding_window_pattern"),
        ("phi3-longrope", "phi3.rope.scaling.attn_factor"),
        ("gpt2", "gpt2.attention.layer_norm_epsilon"),
    ],
)
def test_wrong_metadata_is_caught(tmp_path: Path, family: str, key: str) -> None:
    from gguf import GGUFReader

    folder = make_model(tmp_path / "model", family)
    [made] = export(folder, tmp_path / "gguf", "f16")
    reader = GGUFReader(made.gguf_path, "r+")
    reader.get_field(key).parts[-1][0] = 0 if "pattern" not in key else 1 - reader.get_field(key).parts[-1][0]
    reader.data.flush()
    source = open_model(open_artifact(folder)).source(tmp_path)
    with pytest.raises(CheckFailed, match=key):
        check_structure(made.gguf_path, plan_gguf(source), source)


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "phi3", "gpt2"])
def test_an_adapter_goes_straight_in(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "model", family)
    adapter = make_adapter(tmp_path / "adapter", folder, fan_in_fan_out=family == "gpt2")
    [made] = export(adapter, tmp_path / "gguf", "f32", check="logits")
    limit = 1e-2 if family in HALF_PRECISION else 1e-3
    assert made.manifest.measurements["logits"]["max_abs"] < limit
