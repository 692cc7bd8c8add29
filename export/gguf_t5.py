"""T5, T5 1.1, FLAN-T5, mT5 and UMT5 in llama.cpp's terms: two stacks, relative positions, a tied head's scale."""

from __future__ import annotations

import re

from export.gguf_family import Config, Family, GgufModel, Layout, Shapes, Value, linear

_LAST_NORM = "decoder.final_layer_norm.weight"
_MAX_DISTANCE = 128  # of llama.cpp's relative positions, which no key changes
_ACTIVATIONS = ("relu", "gated-gelu")


def _t5(config: Config, rows: int) -> GgufModel:
    config.only("feed_forward_proj", *_ACTIVATIONS)
    config.only("relative_attention_max_distance", _MAX_DISTANCE)
    if config.get("decoder_start_token_id") is None:
        config.problem("decoder_start_token_id is missing")
    encoder, decoder = config["num_layers"], config.get("num_decoder_layers", config["num_layers"])
    if decoder > encoder:
        config.problem(f"{decoder} decoder layers and {encoder} encoder layers: llama.cpp has no more than of these")
    hidden, buckets, heads = config["d_model"], config["relative_attention_num_buckets"], config["num_heads"]
    gated = config["feed_forward_proj"] == "gated-gelu"
    tied, scaled = bool(config["tie_word_embeddings"]), bool(config["scale_decoder_outputs"])
    shapes: Shapes = {"shared.weight": (rows, hidden)}
    for side, layers in (("encoder", encoder), ("decoder", decoder)):
        for index in range(layers):
            block = _block(config, side, gated)
            shapes |= {f"{side}.block.{index}.{name}": shape for name, shape in block.items()}
        for index in range(layers if config.get("model_type") == "umt5" else 1):
            shapes[f"{side}.block.{index}.layer.0.SelfAttention.relative_attention_bias.weight"] = (buckets, heads)
        shapes[f"{side}.final_layer_norm.weight"] = (hidden,)
    metadata: dict[str, Value] = {
        "t5.context_length": config["n_positions"],
        "t5.embedding_length": hidden,
        "t5.block_count": encoder,
        "t5.decoder_block_count": decoder,
        "t5.feed_forward_length": config["d_ff"],
        "t5.attention.head_count": heads,
        "t5.attention.key_length": config["d_kv"],
        "t5.attention.value_length": config["d_kv"],
        "t5.attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "t5.attention.layer_norm_rms_epsilon": float(config["layer_norm_epsilon"]),
        "t5.attention.relative_buckets_count": buckets,
        "t5.decoder_start_token_id": config.get("decoder_start_token_id", 0),
        "t5.vocab_size": rows,
    }
    if scaled:
        config.notes.append(
            "the scale in front of T5's tied head stands in the decoder's last norm, for llama.cpp knows none"
        )
    elif tied:
        config.notes.append("no head is stored: it is the input embeddings, without a scale before it")
    return GgufModel(
        "t5",
        max(encoder, decoder),
        int(config["n_positions"]),
        metadata,
        shapes if tied else {**shapes, "lm_head.weight": (rows, hidden)},
        "shared.weight",
        tied,
        layout=lambda name: Layout(times=hidden**-0.5 if scaled and name == _LAST_NORM else 1.0),
        buffers=re.compile(
            r"(encoder|decoder)\.embed_tokens\.weight|"
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
        ),
        half_precision_activation=gated,
        notes=tuple(config.notes),
    )


def _block(config: Config, side: str, gated: bool) -> Shapes:
    """One layer of a stack, but for its relative positions."""
    hidden, width, feed_forward = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    attentions = {"layer.0": "SelfAttention", **({"layer.1": "EncDecAttention"} if side == "decoder" else {})}
    found: Shapes = {}
    for place, attention in attentions.items():
        for part in ("q", "k", "v"):
            found |= linear(f"{place}.{attention}.{part}", width, hidden)
        found |= linear(f"{place}.{attention}.o", hidden, width)
    last = f"layer.{len(attentions)}"
    for part in ("wi_0", "wi_1") if gated else ("wi",):
        found |= linear(f"{last}.DenseReluDense.{part}", feed_forward, hidden)
    found |= linear(f"{last}.DenseReluDense.wo", hidden, feed_forward)
    return {**found, **{f"{place}.layer_norm.weight": (hidden,) for place in (*attentions, last)}}


FAMILIES = (
    Family(
        "T5, T5 1.1, FLAN-T5, mT5, UMT5",
        ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "UMT5ForConditionalGeneration"),
        "t5",
        (
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_heads",
            "relative_attention_num_buckets",
            "layer_norm_epsilon",
            "feed_forward_proj",
        ),
        _t5,
        "encoder and decoder, relative positions (UMT5's of every layer), gated or ReLU feed-forward, a tied "
        "head's scale",
        "other activations, relative positions beyond 128, a decoder deeper than the encoder; importance matrices",
    ),
)
