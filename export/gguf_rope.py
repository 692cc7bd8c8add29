"""Rotary positions for GGUF: their base, their scaling, and the factors that Llama 3's and Phi-3's scalings need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from contract.model_config import full_rope
from export.gguf_family import Config, Value

ROPE_FREQS = "rope_freqs.weight"
_BETA_FAST, _BETA_SLOW = 32, 1  # rotations over the original context between which YaRN blends
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def rope_settings(config: Config) -> dict[str, Any]:
    """RoPE's settings with "rope_type" always there ("default": no scaling); of full attention, where layers differ."""
    return full_rope(config.values, config.where).flat


def rope_metadata(
    config: Config, arch: str, dimensions: int, *, kinds: Sequence[str], partial: bool = False
) -> dict[str, Value]:
    """The keys for RoPE's base, the dimensions it turns and a linear scaling and YaRN; other `kinds` bring their own.

    Dynamic scaling has none: it changes nothing up to the context that is written, and a note says so.
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
    if kind == "dynamic" and kind in kinds:
        config.notes.append(
            f"dynamic RoPE scaling sets in beyond {config['max_position_embeddings']} tokens, and the file ends there"
        )
    if kind == "yarn" and kind in kinds:
        found |= yarn_metadata(config, rope, arch)
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


def yarn_metadata(config: Config, rope: Mapping[str, Any], arch: str) -> dict[str, Value]:
    """The keys for YaRN (arXiv 2309.00071), or for its attention factor alone where `yarn_factors` has the rest.

    llama.cpp multiplies queries and keys with 1 + 0.1 ln(factor) by itself, and with rope.scaling.attn_factor, the one
    key that all architectures read: what the model wants else stands there. The rotations between which it blends are
    32 and 1 for most architectures, whatever the file says.
    """
    if not isinstance(factor := rope.get("factor"), int | float) or factor < 1:
        config.problem(f"YaRN's factor {factor!r}: expected a number of 1 or more")
        return {}
    attention = _yarn_attention(rope)
    if not _usual_yarn(rope):
        return {f"{arch}.rope.scaling.type": "none", f"{arch}.rope.scaling.attn_factor": attention}
    return {
        f"{arch}.rope.scaling.type": "yarn",
        f"{arch}.rope.scaling.factor": float(factor),
        f"{arch}.rope.scaling.original_context_length": _yarn_original(config, rope),
        f"{arch}.rope.scaling.attn_factor": attention / (1 + 0.1 * math.log(factor)),
    }


def yarn_factors(config: Config, rope: Mapping[str, Any], dimensions: int) -> tuple[float, ...] | None:
    """What YaRN divides each of dimensions / 2 frequencies by, where llama.cpp would blend them otherwise.

    None: it blends as the model does.
    """
    if _usual_yarn(rope) or not isinstance(rope.get("factor"), int | float):
        return None
    theta, factor = float(rope["rope_theta"]), float(rope["factor"])
    original = _yarn_original(config, rope)
    low, high = (
        dimensions * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (rope.get("beta_fast") or _BETA_FAST, rope.get("beta_slow") or _BETA_SLOW)
    )
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    high += 0.001 if low == high else 0
    kept = [1 - min(1.0, max(0.0, (index - low) / (high - low))) for index in range(dimensions // 2)]
    return tuple(1 / ((1 - share) / factor + share) for share in kept)


def refuse_unusual_yarn(config: Config) -> None:
    """Note a problem where YaRN blends otherwise than llama.cpp does for architectures without factors of their own."""
    rope = rope_settings(config)
    if rope["rope_type"] == "yarn" and not _usual_yarn(rope):
        found = ", ".join(f"{key} {rope[key]!r}" for key in ("beta_fast", "beta_slow", "truncate") if key in rope)
        config.problem(f"YaRN's {found}: llama.cpp has beta_fast {_BETA_FAST}, beta_slow {_BETA_SLOW}, truncated here")


def _usual_yarn(rope: Mapping[str, Any]) -> bool:
    betas = (rope.get("beta_fast") or _BETA_FAST, rope.get("beta_slow") or _BETA_SLOW)
    return betas == (_BETA_FAST, _BETA_SLOW) and bool(rope.get("truncate", True))


def _yarn_original(config: Config, rope: Mapping[str, Any]) -> int:
    """Tokens of context before YaRN; a config that names none means its own, as transformers has it."""
    return int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])


def _yarn_attention(rope: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied with, as transformers has it."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def longrope_attention(context: int, original: int) -> float:
    """How much LongRoPE scales queries and keys at any length (LongRoPE, arXiv 2402.13753)."""
    stretch = context / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
