"""The Llama family in llama.cpp's terms: Llama 2 and 3, TinyLlama, SmolLM, Mistral, and SmolLM3."""

from __future__ import annotations

from export.gguf_family import Config, Family, GgufModel, Layout, Shapes, Sizes
from export.gguf_rope import (
    ROPE_FREQS,
    llama3_factors,
    refuse_unusual_yarn,
    rope_metadata,
    rope_settings,
    yarn_factors,
)

_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)

_SCALINGS = {"llama": ("linear", "dynamic", "yarn", "llama3"), "smollm3": ("linear", "dynamic", "yarn")}


def _read(config: Config, rows: int, *, arch: str, window: int | None, bias: bool) -> GgufModel:
    sizes = Sizes.of(config)
    context = config.context(window)
    config.only("hidden_act", "silu")
    rope = rope_settings(config)
    metadata = {
        **sizes.metadata(arch, context, rows),
        **rope_metadata(config, arch, sizes.head_dim, kinds=_SCALINGS[arch]),
    }
    computed = {}
    if rope["rope_type"] == "llama3":
        theta = metadata[f"{arch}.rope.freq_base"]
        assert isinstance(theta, float)
        computed[ROPE_FREQS] = llama3_factors(rope, theta, sizes.head_dim)
    elif rope["rope_type"] == "yarn" and arch == "llama" and (factors := yarn_factors(config, rope, sizes.head_dim)):
        computed[ROPE_FREQS] = factors
    attention_bias = bias and bool(config.get("attention_bias"))
    layer: Shapes = {
        **sizes.norms("input_layernorm"),
        **sizes.separate_attention(qkv_bias=attention_bias, output_bias=attention_bias),
        **sizes.norms("post_attention_layernorm"),
        **sizes.gated_feed_forward(bias=bias and bool(config.get("mlp_bias"))),
    }
    tied = bool(config.get("tie_word_embeddings"))

    def layout(name: str) -> Layout:
        if ".q_proj." in name:
            return Layout(heads=sizes.heads)
        return Layout(heads=sizes.kv_heads) if ".k_proj." in name else Layout()

    return GgufModel(
        arch,
        sizes.layers,
        context,
        metadata,
        sizes.decoder(rows, layer, tied=tied),
        "model.embed_tokens.weight",
        tied,
        layout=layout,
        computed=computed,
        notes=tuple(config.notes),
    )


def _llama(config: Config, rows: int) -> GgufModel:
    return _read(config, rows, arch="llama", window=None, bias=True)


def _mistral(config: Config, rows: int) -> GgufModel:
    return _read(config, rows, arch="llama", window=config.get("sliding_window"), bias=False)


def _smollm3(config: Config, rows: int) -> GgufModel:
    layers = config["num_hidden_layers"]
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    config.only("use_sliding_window", False)
    refuse_unusual_yarn(config)
    turning = [int(kind) for kind in config.get("no_rope_layers", [])]
    if turning != [int((layer + 1) % 4 != 0) for layer in range(layers)]:
        config.problem(f"no_rope_layers {turning}: llama.cpp leaves RoPE out of every fourth layer")
    return _read(config, rows, arch="smollm3", window=None, bias=False)


FAMILIES = (
    Family(
        "Llama 2, Llama 3.x, TinyLlama, SmolLM, SmolLM2",
        ("LlamaForCausalLM",),
        "llama",
        _KEYS,
        _llama,
        "grouped attention, biases, RoPE scaling linear, llama3 and yarn; dynamic up to the context, where it sets in",
        "RoPE scaling longrope",
    ),
    Family(
        "Mistral, Mistral NeMo",
        ("MistralForCausalLM",),
        "llama",
        _KEYS,
        _mistral,
        "as Llama; a sliding window becomes the context, within which it makes no difference",
        "as Llama",
    ),
    Family(
        "SmolLM3",
        ("SmolLM3ForCausalLM",),
        "smollm3",
        _KEYS,
        _smollm3,
        "every fourth layer without RoPE; RoPE scaling linear, yarn and dynamic",
        "another pattern of layers without RoPE, sliding windows, biases, YaRN with other betas than 32 and 1",
    ),
)
