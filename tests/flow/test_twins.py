"""Every family's real shapes make a twin that transformers loads, with the head size and the blocks of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from contract.errors import AssayError
from flow.preflight import NoTwinError, make_twin

pytestmark = pytest.mark.engine

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48}
# model -> (stem of the classes, width, layers, heads, key-value heads, what else its config says)
SHAPES: dict[str, tuple[str, int, int, int, int, dict[str, Any]]] = {
    "Llama 3.2 1B": ("Llama", 2048, 16, 32, 8, {"head_dim": 64, "rope_scaling": LLAMA3}),
    "Llama 3.2 3B": ("Llama", 3072, 28, 24, 8, {"head_dim": 128, "rope_scaling": LLAMA3}),
    "TinyLlama": ("Llama", 2048, 22, 32, 4, {}),
    "SmolLM2 135M": ("Llama", 576, 30, 9, 3, {}),
    "SmolLM2 360M": ("Llama", 960, 32, 15, 5, {}),
    "odd heads of 128": ("Llama", 1152, 12, 9, 3, {}),
    "Mistral 7B": ("Mistral", 4096, 32, 32, 8, {"sliding_window": 4096}),
    "Mistral Nemo": ("Mistral", 5120, 40, 32, 8, {"head_dim": 128, "sliding_window": None}),
    "Qwen2.5 0.5B": ("Qwen2", 896, 24, 14, 2, {"max_window_layers": 21}),
    "Qwen2.5 3B": ("Qwen2", 2048, 36, 16, 2, {"max_window_layers": 70}),
    "Qwen3 0.6B": ("Qwen3", 1024, 28, 16, 8, {"head_dim": 128}),
    "Gemma 2B": ("Gemma", 2048, 18, 8, 1, {"head_dim": 256}),
    "Gemma 2 2B": ("Gemma2", 2304, 26, 8, 4, {"head_dim": 256}),
    "Gemma 2 9B": ("Gemma2", 3584, 42, 16, 8, {"head_dim": 256}),
    "Gemma 3 270M": ("Gemma3", 640, 18, 4, 1, {"head_dim": 256, "sliding_window": 512}),
    "Gemma 3 1B": ("Gemma3", 1152, 26, 4, 1, {"head_dim": 256, "sliding_window": 512}),
    "Phi-3 mini": ("Phi3", 3072, 32, 32, 32, {"sliding_window": 2047}),
    "Phi-4": ("Phi3", 5120, 40, 40, 10, {}),
    "Phi-4 mini": ("Phi3", 3072, 32, 24, 8, {"partial_rotary_factor": 0.75, "rope_scaling": LONG}),
    "SmolLM3": ("SmolLM3", 2048, 36, 16, 4, {}),
}


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kinds(config: Any) -> list[set[Any]]:
    return [set(getattr(config, name, None) or []) for name in ("layer_types", "no_rope_layers")]


@pytest.mark.parametrize("name", SHAPES)
def test_decoders(tmp_path: Path, name: str) -> None:
    stem, width, layers, heads, groups, more = SHAPES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if stem == "Gemma3" else f"{stem}Config")
    theirs = config_class(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **more,
    )
    theirs.architectures = [f"{stem}ForCausalLM"]
    theirs.save_pretrained(tmp_path / "base")
    twin = make_twin(tmp_path / "base", tmp_path / "twin")
    ours = transformers.AutoModelForCausalLM.from_pretrained(twin).config
    assert head_size(ours) == head_size(theirs)
    assert ours.hidden_size % 32 == theirs.hidden_size % 32
    assert (ours.hidden_size % 256 == 0) == (width % 256 == 0)
    rows = [config.num_attention_heads * head_size(config) for config in (ours, theirs)]  # of the output projection
    assert (rows[0] % 256 == 0) == (rows[1] % 256 == 0)
    assert ours.num_attention_heads % ours.num_key_value_heads == 0
    assert kinds(ours) == kinds(theirs)
    for name_of_kinds in ("layer_types", "no_rope_layers"):
        found = getattr(ours, name_of_kinds, None)
        assert not found or len(found) == ours.num_hidden_layers
    assert ours.num_hidden_layers < layers
    assert ours.hidden_size < width or name == "odd heads of 128"
    assert sum(path.stat().st_size for path in twin.glob("*.safetensors")) < 50_000_000


def test_a_config_that_makes_no_model(tmp_path: Path) -> None:
    transformers.LlamaConfig(vocab_size=64).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 0}))
    with pytest.raises(AssayError, match="the base's config makes no model") as refusal:
        make_twin(tmp_path / "base", tmp_path / "twin")
    assert not isinstance(refusal.value, NoTwinError)
