"""RoPE's settings from a GGUF's metadata and tensors, in the words of both transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from contract.errors import AssayError
from export.from_gguf.header import Header, shortest
from export.from_gguf.weights import vector
from export.gguf_rope import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, llama3_factors, longrope_attention

_THETA = 10000.0  # llama.cpp's, where the file names none
_LLAMA3_LENGTHS = (8192, *(2**power for power in range(8, 21)))  # Llama 3's own first
_CLOSE = 2e-6  # relative: float32 factors of a formula computed in float64


def rope_config(header: Header, head_dim: int) -> dict[str, Any]:
    """What config.json says of RoPE.

    Args:
        header: the file's.
        head_dim: values of a head.

    Raises:
        AssayError: a kind of scaling or factors that no configuration of transformers gives.
    """
    theta = header.real("rope.freq_base", _THETA)
    scaling = _scaling(header, theta, header.number("rope.dimension_count", head_dim))
    found: dict[str, Any] = {
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling},
    }
    return {**found, "rope_scaling": scaling} if scaling else found


def _scaling(header: Header, theta: float, dimensions: int) -> dict[str, Any]:
    kind = header.own("rope.scaling.type") or "linear"  # llama.cpp's own default, of a factor of 1
    factor = header.own("rope.scaling.factor")
    factors = vector(header, ROPE_FREQS)
    if factors is not None and any(value != 1.0 for value in factors):
        if kind != "linear" or factor not in (None, 1.0):
            raise _unknown(header, f"rope.scaling.type {kind} beside {ROPE_FREQS}")
        return _llama3(header, factors, theta, dimensions)
    if vector(header, ROPE_LONG) is not None:
        return _longrope(header)
    match kind:
        case "none":
            return {}
        case "linear":
            return {} if factor in (None, 0.0, 1.0) else {"rope_type": "linear", "factor": shortest(float(factor))}
        case "yarn" if factor is not None:
            return _yarn(header, shortest(float(factor)))
    raise _unknown(header, f"rope.scaling.type {kind}, factor {factor}")


def _yarn(header: Header, factor: float) -> dict[str, Any]:
    """YaRN; llama.cpp multiplies with 1 + 0.1 ln(factor) by itself, and with what the file says (arXiv 2309.00071)."""
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": header.number("rope.scaling.original_context_length"),
    }
    more = header.real("rope.scaling.attn_factor", 1.0)
    if not math.isclose(more, 1.0, rel_tol=_CLOSE):
        found["attention_factor"] = round(more * (1 + 0.1 * math.log(factor)), 7)
    return found


def _llama3(header: Header, factors: Sequence[float], theta: float, dimensions: int) -> dict[str, Any]:
    """The settings of Llama 3's scaling that give these factors.

    Only its factors are in the file. Settings that give the same factors are the same model; Llama's own are taken
    where they do.
    """
    candidates = [
        {
            "rope_type": "llama3",
            "factor": shortest(max(factors)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": length,
        }
        for length in _LLAMA3_LENGTHS
    ]
    candidates += _fitted(factors, theta)
    for candidate in candidates:
        computed = llama3_factors(candidate, theta, dimensions)
        if len(computed) == len(factors) and all(
            math.isclose(a, b, rel_tol=_CLOSE) for a, b in zip(computed, factors, strict=True)
        ):
            return candidate
    raise _unknown(header, f"{ROPE_FREQS}: factors that Llama 3's scaling does not give")


def _fitted(factors: Sequence[float], theta: float) -> list[dict[str, Any]]:
    """Settings from two of the frequencies that are scaled in part: there the share is linear in 1 / wavelength."""
    largest, count = max(factors), len(factors)
    within = [
        (theta ** (-index / count) / (2 * math.pi), (1 / value - 1 / largest) / (1 - 1 / largest))
        for index, value in enumerate(factors)
        if 1.0 < value < largest
    ]
    if len(within) < 2:
        return []
    (x1, y1), (x2, y2) = within[0], within[-1]
    slope = (y1 - y2) / (x1 - x2)
    offset = slope * x1 - y1  # low / (high - low)
    if offset <= 0 or slope <= 0:
        return []
    length, high = slope / offset, 1 + 1 / offset  # with low = 1
    low = 1.0
    rounded = round(length)
    return [
        {
            "rope_type": "llama3",
            "factor": shortest(largest),
            "low_freq_factor": low,
            "high_freq_factor": round(high, digits),
            "original_max_position_embeddings": near,
        }
        for digits in (0, 1, 2, 3)
        for near in dict.fromkeys((rounded, 2 ** round(math.log2(length))))
    ]


def _longrope(header: Header) -> dict[str, Any]:
    original = header.number("rope.scaling.original_context_length", header.number("context_length"))
    long, short = vector(header, ROPE_LONG), vector(header, ROPE_SHORT)
    attention = header.own("rope.scaling.attn_factor")
    if long is None or short is None:
        raise _unknown(header, f"{ROPE_LONG} without {ROPE_SHORT}")
    found = {
        "rope_type": "longrope",
        "long_factor": [shortest(value) for value in long],
        "short_factor": [shortest(value) for value in short],
        "original_max_position_embeddings": original,
    }
    usual = longrope_attention(header.number("context_length"), original)
    if attention is not None and not math.isclose(attention, usual, rel_tol=1e-6):
        found["attention_factor"] = shortest(attention)
    elif attention is None and usual != 1.0:
        found["attention_factor"] = 1.0
    return found


def _unknown(header: Header, got: str) -> AssayError:
    return AssayError(
        "the file scales RoPE in a way that is not understood here",
        where=header.where,
        expected="none, linear, yarn, llama3 (factors) or longrope (factors)",
        got=got,
    )
