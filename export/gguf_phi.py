"""Phi-3 and Phi-4 in llama.cpp's terms: one tensor for QKV, one for gate and up, LongRoPE's factors."""

from __future__ import annotations

from export.gguf_family import Config, Family, GgufModel, Shapes, Sizes, Value, linear
from export.gguf_rope import ROPE_LONG, ROPE_SHORT, longrope_attention, rope_metadata, rope_settings


def _phi3(config: Config, rows: int) -> GgufModel:
    sizes = Sizes.of(config)
    config.only("hidden_act", "silu")
    sizes.refuse_other_widths(config)
    context = config.context(config.get("sliding_window"))
    dimensions = int(sizes.head_dim * rope_settings(config).get("partial_rotary_factor", 1.0))
    own, computed = _longrope(config, dimensions)
    layer: Shapes = {
        **sizes.norms("input_layernorm"),
        **linear("self_attn.qkv_proj", sizes.query + 2 * sizes.key, sizes.hidden),
        **linear("self_attn.o_proj", sizes.hidden, sizes.query),
        **sizes.norms("post_attention_layernorm"),
        **linear("mlp.gate_up_proj", 2 * sizes.feed_forward, sizes.hidden),
        **linear("mlp.down_proj", sizes.hidden, sizes.feed_forward),
    }
    tied = bool(config.get("tie_word_embeddings"))
    return GgufModel(
        "phi3",
        sizes.layers,
        context,
        {
            **sizes.metadata("phi3", context, rows),
            **rope_metadata(config, "phi3", dimensions, kinds=("longrope",), partial=True),
            **own,
        },
        sizes.decoder(rows, layer, tied=tied),
        "model.embed_tokens.weight",
        tied,
        computed=computed,
        notes=tuple(config.notes),
    )


def _longrope(config: Config, dimensions: int) -> tuple[dict[str, Value], dict[str, tuple[float, ...]]]:
    """LongRoPE's keys and its two tensors of factors, each [dimensions / 2]."""
    rope = rope_settings(config)
    outside = config.get("original_max_position_embeddings", config["max_position_embeddings"])
    original = int(rope.get("original_max_position_embeddings", outside))
    own: dict[str, Value] = {"phi3.rope.scaling.original_context_length": original}
    if rope["rope_type"] != "longrope":
        return own, {}
    for name in ("long_factor", "short_factor"):
        if len(rope.get(name) or ()) != dimensions // 2:
            config.problem(f"RoPE's {name} has {len(rope.get(name) or ())} values, expected {dimensions // 2}")
    attention = rope.get("attention_factor") or longrope_attention(config["max_position_embeddings"], original)
    own["phi3.rope.scaling.attn_factor"] = float(attention)
    config.notes.append(
        f"llama.cpp takes the RoPE factors for long texts whenever it is opened with more than {original} tokens of "
        "context, however short the text"
    )
    return own, {ROPE_LONG: tuple(rope.get("long_factor") or ()), ROPE_SHORT: tuple(rope.get("short_factor") or ())}


FAMILIES = (
    Family(
        "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
        ("Phi3ForCausalLM",),
        "phi3",
        (
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "rms_norm_eps",
            "max_position_embeddings",
        ),
        _phi3,
        "fused QKV, fused gate and up, partial RoPE, LongRoPE; a sliding window becomes the context",
        "models with experts or a vision tower; RoPE scaling other than longrope",
    ),
)
