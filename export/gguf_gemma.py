"""The Gemma family in llama.cpp's terms: norms that add one, norms after each block, sliding layers, soft caps."""

from __future__ import annotations

from contract.model_config import SLIDING, ropes
from export.gguf_family import Config, Family, GgufModel, Layout, Shapes, Sizes, Value
from export.gguf_rope import rope_metadata

_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "sliding_window",
)
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _layout(name: str) -> Layout:
    return Layout(plus=1.0) if name.endswith("norm.weight") else Layout()


def _read(
    config: Config, rows: int, arch: str, *, largest: int, scalings: tuple[str, ...], own: dict[str, Value]
) -> GgufModel:
    sizes = Sizes.of(config)
    config.only("hidden_activation", "gelu_pytorch_tanh")
    config.only("attention_bias", False)
    _refuse_scale(config, sizes, largest)
    attention = sizes.separate_attention()
    if arch == "gemma3":
        attention |= {f"self_attn.{part}_norm.weight": (sizes.head_dim,) for part in ("q", "k")}
    layer: Shapes = {**sizes.norms(*_NORMS), **attention, **sizes.gated_feed_forward()}
    tied = bool(config.get("tie_word_embeddings"))
    context = config.context(None)
    return GgufModel(
        arch,
        sizes.layers,
        context,
        {
            **sizes.metadata(arch, context, rows),
            **rope_metadata(config, arch, sizes.head_dim, kinds=scalings),
            f"{arch}.attention.sliding_window": config["sliding_window"],
            f"{arch}.attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
            **own,
        },
        sizes.decoder(rows, layer, tied=tied),
        "model.embed_tokens.weight",
        tied,
        layout=_layout,
        half_precision_activation=True,
        notes=tuple(config.notes),
    )


def _refuse_scale(config: Config, sizes: Sizes, largest: int) -> None:
    """llama.cpp derives the scale of attention from the sizes, and knows the family's largest model by its layers."""
    expected = sizes.hidden // sizes.heads if sizes.layers == largest else sizes.head_dim
    if config["query_pre_attn_scalar"] != expected:
        config.problem(
            f"query_pre_attn_scalar {config['query_pre_attn_scalar']}: llama.cpp takes {expected} for these sizes"
        )


def _gemma2(config: Config, rows: int) -> GgufModel:
    config.only("tie_word_embeddings", True)
    caps: dict[str, Value] = {}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key) is None:
            config.problem(f"{key} is null: llama.cpp always has one here")
        else:
            caps[f"gemma2.{key}"] = float(config[key])
    return _read(config, rows, "gemma2", largest=46, scalings=(), own=caps)


def _gemma3(config: Config, rows: int) -> GgufModel:
    if config.get("attn_logit_softcapping") is not None:
        config.problem(f"attn_logit_softcapping {config['attn_logit_softcapping']}: llama.cpp has none here")
    config.only("use_bidirectional_attention", False)
    local = ropes(config.values, config.where)[SLIDING]
    if local.kind != "default":
        config.problem(f"RoPE scaling {local.kind!r} in layers with a window: llama.cpp scales none there")
    own: dict[str, Value] = {"gemma3.rope.freq_base_swa": float(local.flat["rope_theta"])}
    if config.get("final_logit_softcapping") is not None:
        own["gemma3.final_logit_softcapping"] = float(config["final_logit_softcapping"])
    return _read(config, rows, "gemma3", largest=62, scalings=("linear",), own=own)


FAMILIES = (
    Family(
        "Gemma 2",
        ("Gemma2ForCausalLM",),
        "gemma2",
        _KEYS,
        _gemma2,
        "soft caps, norms before and after each block (one added to their weights), sliding layers",
        "a null soft cap, an untied head, another attention scale than llama.cpp derives, RoPE scaling",
    ),
    Family(
        "Gemma 3 (text)",
        ("Gemma3ForCausalLM",),
        "gemma3",
        _KEYS,
        _gemma3,
        "as Gemma 2, norms on queries and keys, two RoPE bases, any pattern of sliding layers, RoPE scaling linear",
        "models with a vision tower, bidirectional attention, another attention scale than llama.cpp derives",
    ),
)
