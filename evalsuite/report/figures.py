"""The figure of a reason in words: value with unit, documents, interval, limit."""

from __future__ import annotations

from contract.verdict import Reason


def figure_of(reason: Reason) -> dict[str, str]:
    """By name "value", "n", "interval" and "limit"; empty where there is none."""
    interval = reason.low is not None and reason.high is not None
    return {
        "value": _with_unit(reason.value, reason.unit),
        "n": "" if reason.n is None else str(reason.n),
        "interval": f"{reason.low:.4g} to {reason.high:.4g}" if interval else "",
        "limit": _with_unit(reason.limit, reason.unit),
    }


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}".rstrip()
