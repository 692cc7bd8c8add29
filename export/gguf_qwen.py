"""The Qwen family in llama.cpp's terms: Qwen2 and Qwen2.5 with biases on QKV, Qwen3 with norms on queries and keys."""

from __future__ import annotations

from export.gguf_family import Config, Family, GgufModel, Shapes, Sizes
from export.gguf_rope import refuse_unusual_yarn, rope_metadata

_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)


def _window(config: Config) -> int | None:
    """The sliding window of layers that have one; the flag alone does not give any layer one."""
    sliding = any(kind == "sliding_attention" for kind in config.get("layer_types", []))
    return config["sliding_window"] if config.get("use_sliding_window") and sliding else None


def _read(config: Config, rows: int, arch: str, sizes: Sizes, attention: Shapes) -> GgufModel:
    config.only("hidden_act", "silu")
    refuse_unusual_yarn(config)
    context = config.context(_window(config))
    layer: Shapes = {
        **sizes.norms("input_layernorm"),
        **attention,
        **sizes.norms("post_attention_layernorm"),
        **sizes.gated_feed_forward(),
    }
    tied = bool(config.get("tie_word_embeddings"))
    return GgufModel(
        arch,
        sizes.layers,
        context,
        {
            **sizes.metadata(arch, context, rows),
            **rope_metadata(config, arch, sizes.head_dim, kinds=("linear", "dynamic", "yarn")),
        },
        sizes.decoder(rows, layer, tied=tied),
        "model.embed_tokens.weight",
        tied,
        notes=tuple(config.notes),
    )


def _qwen2(config: Config, rows: int) -> GgufModel:
    sizes = Sizes.of(config)
    sizes.refuse_other_widths(config)
    return _read(config, rows, "qwen2", sizes, sizes.separate_attention(qkv_bias=True))


def _qwen3(config: Config, rows: int) -> GgufModel:
    sizes = Sizes.of(config)
    config.only("attention_bias", False)
    norms: Shapes = {f"self_attn.{part}_norm.weight": (sizes.head_dim,) for part in ("q", "k")}
    return _read(config, rows, "qwen3", sizes, {**sizes.separate_attention(), **norms})


FAMILIES = (
    Family(
        "Qwen2, Qwen2.5",
        ("Qwen2ForCausalLM",),
        "qwen2",
        _KEYS,
        _qwen2,
        "biases on queries, keys and values; RoPE scaling linear, yarn, and dynamic up to the context; a sliding "
        "window becomes the context",
        "RoPE scaling longrope, YaRN with other betas than 32 and 1",
    ),
    Family(
        "Qwen3 (dense)",
        ("Qwen3ForCausalLM",),
        "qwen3",
        _KEYS,
        _qwen3,
        "norms on queries and keys; otherwise as Qwen2",
        "attention biases; otherwise as Qwen2",
    ),
)
