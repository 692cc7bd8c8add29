"""Each PEFT type merges to what PEFT itself makes of it, on Linear and on Conv1D, tied and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.artifact import open_artifact
from contract.model_folder import read_json
from export.merge import merge_adapter
from export.weights import FolderWeights
from runtimes.torch_load import load_adapter
from tests.export.makers import gpt2_tokenizer
from tests.export.peft_makers import logits, make_gpt2, make_peft, peft_merge
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

SMALL = {"hidden_size": 64, "intermediate_size": 96, "dtype": "float32"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": make_llama(folder / "llama", tie=False, attention_bias=True, **SMALL),
        "tied llama": make_llama(folder / "tied", tie=True, **SMALL),
        "gpt2": make_gpt2(folder / "gpt2", tie=False),
        "tied gpt2": make_gpt2(folder / "tied-gpt2", tie=True),
    }


# PEFT adds a delta of shared embeddings to the one tensor twice when it merges; it runs them rightly
ADDED_TWICE = {"tied and kept so", "tied and kept so from the head"}


def lora(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "LoraConfig", {"r": 4, "lora_alpha": 12, "init_lora_weights": False, **settings}


QKV, MLP, GPT2 = ["q_proj", "v_proj"], ["down_proj"], ["c_attn", "mlp.c_proj"]
# what is merged: (base, PEFT's configuration)
CASES: dict[str, tuple[str, tuple[str, dict[str, Any]]]] = {
    "lora": ("llama", lora(target_modules="all-linear")),
    "lora, minor components": ("llama", lora(target_modules=QKV, init_lora_weights="mica")),
    "lora by expression": ("llama", lora(target_modules=r".*layers\.1\.(self_attn|mlp)\.\w+_proj")),
    "lora without some": ("llama", lora(target_modules="all-linear", exclude_modules=["up_proj", "o_proj"])),
    "lora on one layer": ("llama", lora(target_modules=QKV, layers_to_transform=[1])),
    "lora, patterns, rslora": (
        "llama",
        lora(target_modules=QKV, use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"^model.layers.0.*": 5}),
    ),
    "lora on both embeddings": ("llama", lora(target_modules=["embed_tokens", "lm_head", "o_proj"])),
    "lora, biases of all": ("llama", lora(target_modules=QKV, bias="all")),
    "lora, biases of its own": ("llama", lora(target_modules=QKV, bias="lora_only")),
    "lora, bias of B": ("llama", lora(target_modules=QKV, lora_bias=True)),
    "lora, whole modules": ("llama", lora(target_modules=QKV, modules_to_save=["lm_head", "norm"])),
    "lora, token rows": ("llama", lora(target_modules=QKV, trainable_token_indices=[3, 40])),
    "lora, rows of both": (
        "llama",
        lora(target_modules=QKV, trainable_token_indices={"embed_tokens": [3, 40], "lm_head": [5]}),
    ),
    "dora": ("llama", lora(target_modules="all-linear", use_dora=True)),
    "dora, rslora, embeddings": ("llama", lora(target_modules=["embed_tokens"], use_dora=True, use_rslora=True)),
    "ia3": ("llama", ("IA3Config", {"target_modules": ["k_proj", "v_proj", *MLP], "feedforward_modules": MLP})),
    "adalora": ("llama", ("AdaLoraConfig", {"target_modules": QKV, "init_r": 5, "lora_alpha": 9, "total_step": 9})),
    "loha": ("llama", ("LoHaConfig", {"target_modules": QKV, "r": 3, "alpha": 5, "alpha_pattern": {"v_proj": 2}})),
    "lokr": ("llama", ("LoKrConfig", {"target_modules": [*QKV, *MLP], "r": 2, "alpha": 5, "decompose_both": True})),
    "lokr, whole factors": ("llama", ("LoKrConfig", {"target_modules": QKV, "r": 64, "alpha": 5})),
    "norms": ("llama", ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]})),
    "token rows": ("llama", ("TrainableTokensConfig", {"token_indices": [1, 40]})),
    "gpt2 lora": ("gpt2", lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2 lora, all linear": ("gpt2", lora(target_modules="all-linear")),
    "gpt2 lora, all biases": ("gpt2", lora(target_modules=["c_attn"], bias="all", fan_in_fan_out=True)),
    "gpt2 lora, bias of B": ("gpt2", lora(target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True)),
    "gpt2 lora, linear and Conv1D": ("gpt2", lora(target_modules=["c_attn", "lm_head", "wte"], fan_in_fan_out=True)),
    "gpt2 dora": ("gpt2", lora(target_modules=GPT2, use_dora=True, fan_in_fan_out=True)),
    "gpt2 ia3": (
        "gpt2",
        ("IA3Config", {"target_modules": GPT2, "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True}),
    ),
    "gpt2 adalora": (
        "gpt2",
        ("AdaLoraConfig", {"target_modules": GPT2, "init_r": 5, "total_step": 9, "fan_in_fan_out": True}),
    ),
    "gpt2 norms": ("gpt2", ("LNTuningConfig", {"target_modules": ["ln_1", "ln_f"]})),
    "tied gpt2 lora": ("tied gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "tied, token rows": ("tied llama", lora(target_modules=QKV, trainable_token_indices=[3, 40])),
    "tied, token rows alone": ("tied llama", ("TrainableTokensConfig", {"token_indices": [1, 40]})),
    "tied gpt2, token rows": ("tied gpt2", ("TrainableTokensConfig", {"token_indices": [1, 40]})),
    "tied and kept so": ("tied llama", lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "tied and kept so from the head": ("tied llama", lora(target_modules=["lm_head"], ensure_weight_tying=True)),
    "tied and kept so, whole": (
        "tied llama",
        lora(target_modules=QKV, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
}  # fmt: skip


def make(folder: Path, base: Path, config: tuple[str, dict[str, Any]]) -> Path:
    import peft

    return make_peft(folder, base, getattr(peft, config[0])(task_type="CAUSAL_LM", **config[1]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_equal_to_peft_in_float32(tmp_path: Path, bases: dict[str, Path], case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = bases[CASES[case][0]]
    adapter = make(tmp_path / "adapter", base, CASES[case][1])
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    own, before = FolderWeights.open(merged.path), FolderWeights.open(base)
    expected = peft_merge(base, adapter)
    tied = read_json(merged.path / "config.json")["tie_word_embeddings"]
    assert set(own.names()) == set(expected) - ({"lm_head.weight"} if tied else set())
    moved = 0
    for name in own.names():
        if case not in ADDED_TWICE or "embed" not in name:
            assert torch.allclose(own.read(name), expected[name], rtol=2e-6, atol=2e-6), name
        moved += float((own.read(name) - before.read(name)).abs().max()) > 0.01
    assert moved >= 1
    assert tied == case.startswith("tied")
    unmerged = load_adapter(open_artifact(adapter), base_weights=None, merge_dtype=None).model
    whole = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert torch.allclose(logits(whole), logits(unmerged), atol=2e-4)
    assert float((logits(plain) - logits(unmerged)).abs().max()) > 0.02


TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**TINY, "intermediate_size": 96, "num_key_value_heads": 2}
# architectures whose tensors have other names, other kinds or other ties than Llama's
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {**GATED, "head_dim": 16},
    "Gemma2": {**GATED, "head_dim": 16},
    "Phi3": {**GATED, "pad_token_id": 2},
    "GPTNeoX": {**TINY, "intermediate_size": 96},
    "OPT": {**TINY, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    "Falcon": {**TINY, "alibi": False},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(tmp_path: Path, family: str) -> None:
    import torch
    import transformers
    from peft import LoraConfig

    base = tmp_path / "base"
    base.mkdir()
    gpt2_tokenizer(base)
    size = len(transformers.AutoTokenizer.from_pretrained(base))
    config = getattr(transformers, f"{family}Config")(vocab_size=size, initializer_range=0.08, **FAMILIES[family])
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = make_peft(
        tmp_path / "adapter",
        base,
        LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    merged = FolderWeights.open(merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32").path)
    expected, before = peft_merge(base, adapter), FolderWeights.open(base)
    assert set(merged.names()) == set(before.names())
    for name in merged.names():
        within = "lm_head.weight" if name == "embed_out.weight" else name  # transformers 5 renames GPT-NeoX's in memory
        assert torch.allclose(merged.read(name), expected[within], rtol=2e-6, atol=2e-6), name
    assert max(float((merged.read(name) - before.read(name)).abs().max()) for name in merged.names()) > 0.01
