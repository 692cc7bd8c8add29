"""The Pareto front: which choices no other choice beats in everything."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Per point whether it is on the front: no other is at least as good in every coordinate and better in one.

    Less is better; turn the sign of what should be large. Points that are equal stand or fall together.

    Raises:
        ValueError: the points have different numbers of coordinates.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
