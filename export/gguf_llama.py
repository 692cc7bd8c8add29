"""Maps the Llama family's configuration and tensors to llama.cpp's names, layouts and metadata."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from export.weights import FLOAT_DTYPES, Weights

if TYPE_CHECKING:
    import gguf
    import torch

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
ROPE_FREQS = "rope_freqs.weight"
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Positions are computed, not learned: old checkpoints store them all the same.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class LlamaShape:
    """The hyper-parameters llama.cpp needs, read from config.json."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> LlamaShape:
        """Read config.json.

        Raises:
            AssayError: another architecture, or a feature llama.cpp's Llama cannot express; all are named.
        """
        names = config.get("architectures") or []
        if not set(names) & set(ARCHITECTURES):
            raise AssayError(
                "GGUF export knows the Llama family only",
                where=where,
                expected=" or ".join(ARCHITECTURES),
                got=listed(names) or "no architectures",
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        context = config.get("max_position_embeddings")
        window = config.get("sliding_window")
        problems = [
            f"{key} is missing"
            for key in (
                "num_hidden_layers",
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "rms_norm_eps",
                "max_position_embeddings",
            )
            if key not in config
        ]
        if kind not in ("default", "linear", "llama3"):
            problems.append(f"RoPE scaling {kind!r}: only linear and llama3 are known")
        if config.get("hidden_act", "silu") != "silu":
            problems.append(f"hidden_act {config['hidden_act']!r}: llama.cpp's Llama has silu")
        if config.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append(f"partial_rotary_factor {config['partial_rotary_factor']}: llama.cpp's Llama has 1")
        if window and context and window < context:
            problems.append(f"sliding_window {window} in a context of {context}: llama.cpp's Llama has none")
        if problems:
            raise AssayError("this model cannot be written as a llama.cpp Llama", where=where, got=listed(problems))
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            feed_forward=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            context=config["max_position_embeddings"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
            rope_scaling={**rope, "rope_type": kind} if kind != "default" else None,
            # the Hugging Face classes disagree on the default: Llama's and Mistral's is untied
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias")),
            mlp_bias=bool(config.get("mlp_bias")),
        )


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the GGUF file and where it comes from. `heads`: rows are reordered per head for RoPE."""

    name: str
    source: str | None  # None: computed from the configuration
    shape: tuple[int, ...]
    heads: int | None = None

    def load(self, weights: Weights, shape: LlamaShape) -> torch.Tensor:
        """Its values in llama.cpp's layout, in the dtype they are stored in (rope_freqs in float32)."""
        if self.source is None:
            return rope_factors(shape)
        tensor = weights.read(self.source)
        return tensor if self.heads is None else interleave_halves(tensor, self.heads)


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from Hugging Face's rotate-half order to llama.cpp's order of neighbouring pairs.

    Args:
        tensor: [heads × head_dim, …], a query or key projection or its bias.
        heads: attention heads for a query, key-value heads for a key.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()


def rope_factors(shape: LlamaShape) -> torch.Tensor:
    """What Llama 3's RoPE scaling divides each frequency by (Meta's reference code): float32 [head_dim / 2]."""
    import torch

    assert shape.rope_scaling is not None
    scaling = shape.rope_scaling
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    factors = []
    for index in range(0, shape.head_dim, 2):
        wavelength = 2 * math.pi * shape.rope_theta ** (index / shape.head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def plan_tensors(shape: LlamaShape, weights: Weights, vocab_rows: int, where: str) -> list[GgufTensor]:
    """Every tensor of the GGUF, in file order.

    Raises:
        AssayError: naming every tensor that is missing, surplus, of another shape or not a float.
    """
    import torch

    expected = _expected(shape, vocab_rows)
    present = set(weights.names())
    problems = [f"{name}: missing" for name in expected if name not in present]
    for name in sorted(present - set(expected)):
        if _COMPUTED.fullmatch(name):
            continue
        if name == "lm_head.weight" and shape.tied:
            if not torch.equal(weights.read(name), weights.read("model.embed_tokens.weight")):
                problems.append(f"{name}: differs from model.embed_tokens.weight though tie_word_embeddings is true")
            continue
        problems.append(f"{name}: not a tensor of this architecture")
    for name, extents in expected.items():
        if name in present and weights.shape(name) != extents:
            problems.append(f"{name}: shape {list(weights.shape(name))}, config.json says {list(extents)}")
        if name in present and weights.dtype(name) not in FLOAT_DTYPES:
            problems.append(f"{name}: stored as {weights.dtype(name)}, not as 16 or 32 bit floats")
    if problems:
        raise AssayError("the weights do not fit the configuration", where=where, got=listed(problems, 40))
    plan = [GgufTensor(_gguf_name(name), name, extents, _heads(name, shape)) for name, extents in expected.items()]
    if shape.rope_scaling and shape.rope_scaling["rope_type"] == "llama3":
        plan.insert(0, GgufTensor(ROPE_FREQS, None, (shape.head_dim // 2,)))
    return plan


def _expected(shape: LlamaShape, vocab_rows: int) -> dict[str, tuple[int, ...]]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    linears = {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key, shape.hidden),
        "self_attn.v_proj": (key, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.feed_forward, shape.hidden),
        "mlp.up_proj": (shape.feed_forward, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.feed_forward),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_rows, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for part in _LAYER:
            found[f"{prefix}{part}.weight"] = linears.get(part, (shape.hidden,))
            if part in linears and (shape.attention_bias if part.startswith("self_attn") else shape.mlp_bias):
                found[f"{prefix}{part}.bias"] = linears[part][:1]
    found["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        found["lm_head.weight"] = (vocab_rows, shape.hidden)
    return found


def _gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    part, _, leaf = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER[part]}.{leaf}"


def _heads(name: str, shape: LlamaShape) -> int | None:
    if ".q_proj." in name:
        return shape.heads
    return shape.kv_heads if ".k_proj." in name else None


def add_hyper_parameters(writer: gguf.GGUFWriter, shape: LlamaShape, vocab_rows: int) -> None:
    """Write the metadata llama.cpp's Llama loader reads."""
    import gguf

    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(vocab_rows)
    if shape.rope_scaling and shape.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope_scaling["factor"]))
