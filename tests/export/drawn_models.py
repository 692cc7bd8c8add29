"""One tiny model per family, the same on every machine: its config.json is written by hand, its weights are drawn.

transformers and torch make no part of it, so that what they read wrongly shows. Every weight is a number of eleven bits
that a fixed stream of NumPy draws, whatever its version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.export.drawn_tokenizers import byte_level, sentencepiece_bpe, sentencepiece_unigram

Shapes = dict[str, tuple[int, ...]]

HIDDEN, WIDE, HEADS, GROUPS, SIZE = 64, 96, 4, 2, 16
_DECODER = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
_LONG = {
    "type": "longrope",
    "short_factor": [1.0 + 0.125 * index for index in range(6)],
    "long_factor": [1.0 + 0.5 * index for index in range(6)],
}
_GEMMA = {
    "head_dim": SIZE,
    "query_pre_attn_scalar": SIZE,
    "sliding_window": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": SIZE,
    "d_ff": WIDE,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "n_positions": 512,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}


@dataclass(frozen=True)
class Drawn:
    """A model to be written: its class in transformers, its configuration, its shapes and its tokenizer."""

    architecture: str
    model_type: str
    config: dict[str, Any]
    shapes: Callable[[dict[str, Any]], Shapes]
    tokenizer: Callable[[Path], int] = sentencepiece_bpe
    looks_up_gelu: bool = False  # llama.cpp has a table of half-precision values


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _decoder(config: dict[str, Any]) -> Shapes:
    family = config["model_type"]
    query, key = HEADS * SIZE, GROUPS * SIZE
    gemma, biased = family.startswith("gemma"), family == "qwen2"
    layer: Shapes = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
    if gemma:
        layer |= {f"{name}_feedforward_layernorm.weight": (HIDDEN,) for name in ("pre", "post")}
    if family in ("qwen3", "gemma3_text"):
        layer |= {f"self_attn.{part}_norm.weight": (SIZE,) for part in "qk"}
    if family == "phi3":
        layer |= _linear("self_attn.qkv_proj", query + 2 * key, HIDDEN) | _linear("mlp.gate_up_proj", 2 * WIDE, HIDDEN)
    else:
        for part, rows in (("q", query), ("k", key), ("v", key)):
            layer |= _linear(f"self_attn.{part}_proj", rows, HIDDEN, biased)
        layer |= _linear("mlp.gate_proj", WIDE, HIDDEN) | _linear("mlp.up_proj", WIDE, HIDDEN)
    layer |= _linear("self_attn.o_proj", HIDDEN, query) | _linear("mlp.down_proj", HIDDEN, WIDE)
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], HIDDEN)}
    for index in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (HIDDEN,)
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (config["vocab_size"], HIDDEN)}
    return found | head


def _gpt2(config: dict[str, Any]) -> Shapes:
    layer: Shapes = {}
    for name, rows, columns in (
        ("attn.c_attn", HIDDEN, 3 * HIDDEN),
        ("attn.c_proj", HIDDEN, HIDDEN),
        ("mlp.c_fc", HIDDEN, 4 * HIDDEN),
        ("mlp.c_proj", 4 * HIDDEN, HIDDEN),
    ):
        layer |= {f"{name}.weight": (rows, columns), f"{name}.bias": (columns,)}
    for name in ("ln_1", "ln_2"):
        layer |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    found: Shapes = {"wte.weight": (config["vocab_size"], HIDDEN), "wpe.weight": (config["n_positions"], HIDDEN)}
    for index in range(config["n_layer"]):
        found |= {f"h.{index}.{name}": shape for name, shape in layer.items()}
    found |= {"ln_f.weight": (HIDDEN,), "ln_f.bias": (HIDDEN,)}
    return {f"transformer.{name}": shape for name, shape in found.items()}


def _t5(config: dict[str, Any]) -> Shapes:
    gated, every = config["feed_forward_proj"] == "gated-gelu", config["model_type"] == "umt5"
    found: Shapes = {"shared.weight": (config["vocab_size"], HIDDEN)}
    for side, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for index in range(2):
            block, last = f"{side}.block.{index}", len(attentions)
            for place, attention in enumerate(attentions):
                for part in "qkvo":
                    found |= _linear(f"{block}.layer.{place}.{attention}.{part}", HEADS * SIZE, HIDDEN)
                found[f"{block}.layer.{place}.layer_norm.weight"] = (HIDDEN,)
            if every or index == 0:
                found |= _linear(f"{block}.layer.0.SelfAttention.relative_attention_bias", 32, HEADS)
            for part in ("wi_0", "wi_1") if gated else ("wi",):
                found |= _linear(f"{block}.layer.{last}.DenseReluDense.{part}", WIDE, HIDDEN)
            found |= _linear(f"{block}.layer.{last}.DenseReluDense.wo", HIDDEN, WIDE)
            found[f"{block}.layer.{last}.layer_norm.weight"] = (HIDDEN,)
        found[f"{side}.final_layer_norm.weight"] = (HIDDEN,)
    return found if config["tie_word_embeddings"] else {**found, "lm_head.weight": (config["vocab_size"], HIDDEN)}


def _causal(architecture: str, model_type: str, changes: dict[str, Any], **other: Any) -> Drawn:
    return Drawn(architecture, model_type, {**_DECODER, **changes}, _decoder, **other)


_GEMMA3 = {
    **_GEMMA,
    "num_hidden_layers": 7,  # every sixth sees all: the converter writes no pattern, and llama.cpp takes this one
    "layer_types": ["full_attention" if layer == 5 else "sliding_attention" for layer in range(7)],
}
DRAWN: dict[str, Drawn] = {
    # in the words of transformers 5, and of 4
    "llama": _causal(
        "LlamaForCausalLM", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    ),
    "llama-old-words": _causal("LlamaForCausalLM", "llama", {"rope_theta": 500000.0, "rope_scaling": None}),
    "llama3": _causal("LlamaForCausalLM", "llama", {"rope_parameters": {**_LLAMA3, "rope_theta": 20000.0}}),
    "mistral-yarn": _causal(
        "MistralForCausalLM",
        "mistral",
        {"rope_parameters": {**_YARN, "rope_theta": 20000.0}, "sliding_window": None},
    ),
    "smollm3": _causal(
        "SmolLM3ForCausalLM",
        "smollm3",
        {
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0, 1],
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        },
    ),
    "qwen2": _causal(
        "Qwen2ForCausalLM",
        "qwen2",
        {"use_sliding_window": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
        | {"rms_norm_eps": 1e-6},
        tokenizer=byte_level,
    ),
    "qwen2-yarn": _causal(
        "Qwen2ForCausalLM",
        "qwen2",
        {"use_sliding_window": False, "rope_theta": 1000000.0, "rope_scaling": _YARN, "tie_word_embeddings": True},
        tokenizer=byte_level,
    ),
    "qwen3": _causal(
        "Qwen3ForCausalLM",
        "qwen3",
        {"use_sliding_window": False, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 30000.0}},
        tokenizer=byte_level,
    ),
    "gemma2": _causal(
        "Gemma2ForCausalLM",
        "gemma2",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "rope_theta": 10000.0},
        looks_up_gelu=True,
    ),
    "gemma3": _causal(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _GEMMA3
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            }
        },
        looks_up_gelu=True,
    ),
    "phi3": _causal(
        "Phi3ForCausalLM",
        "phi3",
        {"original_max_position_embeddings": 512, "sliding_window": None}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 1.0}},
    ),
    "phi3-longrope": _causal(
        "Phi3ForCausalLM",
        "phi3",
        {"max_position_embeddings": 2048, "original_max_position_embeddings": 512, "sliding_window": 4096}
        | {"rope_theta": 10000.0, "rope_scaling": _LONG, "partial_rotary_factor": 0.75},
    ),
    "gpt2": Drawn(
        "GPT2LMHeadModel",
        "gpt2",
        {"n_embd": HIDDEN, "n_layer": 2, "n_head": HEADS, "n_positions": 512, "n_ctx": 512}
        | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
        _gpt2,
        byte_level,
        looks_up_gelu=True,
    ),
    "t5": Drawn(
        "T5ForConditionalGeneration",
        "t5",
        {**_T5, "feed_forward_proj": "relu", "tie_word_embeddings": True},
        _t5,
        sentencepiece_unigram,
    ),
    "t5-1.1": Drawn(
        "T5ForConditionalGeneration",
        "t5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5,
        sentencepiece_unigram,
        looks_up_gelu=True,
    ),
    "mt5": Drawn(
        "MT5ForConditionalGeneration",
        "mt5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5,
        sentencepiece_unigram,
        looks_up_gelu=True,
    ),
    "umt5": Drawn(
        "UMT5ForConditionalGeneration",
        "umt5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5,
        sentencepiece_unigram,
        looks_up_gelu=True,
    ),
}


def draw(folder: Path, name: str) -> Path:
    """Write a row of DRAWN as a Hugging Face folder, in float32."""
    from safetensors.numpy import save_file

    drawn = DRAWN[name]
    folder.mkdir(parents=True)
    tokens = drawn.tokenizer(folder)
    start, end, pad = {byte_level: (0, 1, 2), sentencepiece_bpe: (1, 2, 0), sentencepiece_unigram: (None, 1, 0)}[
        drawn.tokenizer
    ]
    config = {
        "architectures": [drawn.architecture],
        "model_type": drawn.model_type,
        "dtype": "float32",
        "vocab_size": tokens + 3,  # rows without a token, as most models have them
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": pad,
        **drawn.config,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    stream = np.random.RandomState(sum(name.encode()))
    tensors = {}
    for tensor, shape in drawn.shapes(config).items():
        whole = stream.randint(-1023, 1024, shape).astype(np.float32)
        norm = tensor.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
        adds_one = drawn.model_type.startswith("gemma")  # its norms add one by themselves
        tensors[tensor] = whole / 4096 + (0 if adds_one else 1) if norm else whole / 4096
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def drawn_ids(name: str, count: int = 90) -> list[int]:
    """Token ids to compute logits for: neither special nor without a token."""
    return [int(token) for token in np.random.RandomState(7).randint(5, 80, count)]
