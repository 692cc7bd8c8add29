"""Rotary positions for GGUF: their base, their scaling, and the factors that Llama 3's and Phi-3's scalings need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from contract.model_config import full_rope
from export.gguf_family import Config, Value

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def rope_settings(config: Config) -> dict[str, Any]:
    """RoPE's settings with "rope_type" always there ("default": no scaling); of full attention, where layers differ."""
    return full_rope(config.values, config.where).flat


def rope_metadata(
    config: Config, arch: str, dimensions: int, *, kinds: Sequence[str], partial: bool = False
) -> dict[str, Value]:
    """The keys for RoPE's base, the dimensions it turns and a linear scaling; other `kinds` bring their own.

    A kind of scaling that is not in `kinds` is noted as a problem, and so is RoPE over a part of each head unless
    `partial` says that `dimensions` are that part.
    """
    rope = rope_settings(config)
    kind = rope["rope_type"]
    if kind not in ("default", *kinds):
        config.problem(f"RoPE scaling {kind!r}: only {' and '.join(kinds) or 'none'} is written")
    if not partial and rope.get("partial_rotary_factor", 1.0) != 1.0:
        config.problem(f"partial_rotary_factor {rope['partial_rotary_factor']}: llama.cpp turns whole heads here")
    found: dict[str, Value] = {
        f"{arch}.rope.dimension_count": dimensions,
        f"{arch}.rope.freq_base": float(rope["rope_theta"]),
    }
    if kind == "linear":
        found[f"{arch}.rope.scaling.type"] = "linear"
        found[f"{arch}.rope.scaling.factor"] = float(rope["factor"])
    return found


def llama3_factors(rope: Mapping[str, Any], theta: float, dimensions: int) -> tuple[float, ...]:
    """What Llama 3's RoPE scaling divides each of dimensions / 2 frequencies by (Meta's reference code)."""
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = []
    for index in range(0, dimensions, 2):
        wavelength = 2 * math.pi * theta ** (index / dimensions)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def longrope_attention(context: int, original: int) -> float:
    """How much LongRoPE scales queries and keys at any length (LongRoPE, arXiv 2402.13753)."""
    stretch = context / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
