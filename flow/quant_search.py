"""Which type to take, with as few of them measured as may be: the order in which `assay export gguf --auto` tries.

KL is nearly monotone in size, so the smallest type near enough is found by bisection; "nearly", so its smaller
neighbours are tried too. Nothing here measures: figures are asked for as they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

Prefer = Literal["smallest", "fastest", "nearest"]
NEIGHBOURS = 2  # types beyond the boundary that must say no before it is believed
SAME_SPEED = 1.05  # times the fastest: within it the smallest counts as fastest, for clocks are no better


class Asked(Protocol):
    """Answers for one type; each is measured when it is first asked for."""

    def near(self, quant: str) -> bool:
        """Is it within the limits of quality? True where there is none."""
        ...

    def quick(self, quant: str) -> bool:
        """Is it within the limit of time? True where there is none."""
        ...

    def nats(self, quant: str) -> float:
        """How far it is from the model."""
        ...

    def ms(self, quant: str) -> float:
        """How long it takes per token."""
        ...


def search(order: Sequence[str], prefer: Prefer, asked: Asked) -> str | None:
    """The type to take, or None where none is within all limits.

    Args:
        order: the types that are small enough, smallest first.
        prefer: which of several that pass.
        asked: their figures.
    """
    match prefer:
        case "smallest":
            passing = (quant for quant in order[_boundary(order, asked) :] if asked.near(quant) and asked.quick(quant))
            return next(passing, None)
        case "fastest":
            return _fastest(order[_boundary(order, asked) :], asked)
        case "nearest":
            return _nearest(order, asked)


def _boundary(order: Sequence[str], asked: Asked) -> int:
    """Where the types that are near enough begin."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if asked.near(order[middle]):
            high = middle
        else:
            low = middle + 1
    below, refused = low - 1, 0
    while below >= 0 and refused < NEIGHBOURS:
        if asked.near(order[below]):
            low, refused = below, 0
        else:
            refused += 1
        below -= 1
    return low


def _fastest(order: Sequence[str], asked: Asked) -> str | None:
    left = list(order)
    while left:
        fastest = min(asked.ms(quant) for quant in left)
        first = next(quant for quant in left if asked.ms(quant) <= SAME_SPEED * fastest)
        if asked.near(first) and asked.quick(first):
            return first
        left.remove(first)
    return None


def _nearest(order: Sequence[str], asked: Asked) -> str | None:
    """From the largest down, until NEIGHBOURS in a row are no nearer than the best."""
    best, no_nearer = None, 0
    for quant in reversed(order):
        if not asked.quick(quant):
            continue
        if asked.near(quant) and (best is None or asked.nats(quant) < asked.nats(best)):
            best, no_nearer = quant, 0
        elif (no_nearer := no_nearer + 1) == NEIGHBOURS:
            break
    return best
