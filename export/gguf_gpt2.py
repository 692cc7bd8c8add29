"""GPT-2 in llama.cpp's terms: learned positions, layer norms with biases, Conv1D weights turned round."""

from __future__ import annotations

import re

from export.gguf_family import Config, Family, GgufModel, Layout, Shapes, linear

_PREFIX = "transformer."


def _layout(name: str) -> Layout:
    return Layout(transposed=".c_" in name and name.endswith(".weight"))


def _gpt2(config: Config, rows: int) -> GgufModel:
    hidden, layers, heads = config["n_embd"], config["n_layer"], config["n_head"]
    feed_forward, context = config.get("n_inner", 4 * hidden), config["n_positions"]
    config.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    layer: Shapes = {
        **_norm("ln_1", hidden),
        **_conv1d("attn.c_attn", hidden, 3 * hidden),
        **_conv1d("attn.c_proj", hidden, hidden),
        **_norm("ln_2", hidden),
        **_conv1d("mlp.c_fc", hidden, feed_forward),
        **_conv1d("mlp.c_proj", feed_forward, hidden),
    }
    shapes: Shapes = {f"{_PREFIX}wte.weight": (rows, hidden), f"{_PREFIX}wpe.weight": (context, hidden)}
    for index in range(layers):
        shapes |= {f"{_PREFIX}h.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= _norm(f"{_PREFIX}ln_f", hidden)
    tied = bool(config.get("tie_word_embeddings"))
    return GgufModel(
        "gpt2",
        layers,
        context,
        {
            "gpt2.context_length": context,
            "gpt2.embedding_length": hidden,
            "gpt2.block_count": layers,
            "gpt2.feed_forward_length": feed_forward,
            "gpt2.attention.head_count": heads,
            "gpt2.attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
            "gpt2.vocab_size": rows,
        },
        shapes if tied else {**shapes, **linear("lm_head", rows, hidden)},
        f"{_PREFIX}wte.weight",
        tied,
        layout=_layout,
        buffers=re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),
        prefix=_PREFIX,
        half_precision_activation=True,
    )


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _conv1d(name: str, rows: int, columns: int) -> Shapes:
    """A linear layer stored the other way round: [inputs, outputs]."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (columns,)}


FAMILIES = (
    Family(
        "GPT-2, DistilGPT-2",
        ("GPT2LMHeadModel",),
        "gpt2",
        ("n_layer", "n_embd", "n_head", "n_positions", "layer_norm_epsilon"),
        _gpt2,
        "Conv1D weights transposed, learned positions, biases, names with and without `transformer.`",
        "attention scaled per layer, cross-attention, activations other than gelu_new",
    ),
)
