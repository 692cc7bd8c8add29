"""The search finds what trying everything would find, and tries far less."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest

from flow.quant_search import Prefer, search

# smallest first: nats, milliseconds (the types with tables of values are slow); one pair of neighbours is the wrong way
TABLE: dict[str, tuple[float, float]] = {
    "iq2_xs": (0.3508, 1.9),
    "iq2_m": (0.1105, 2.0),
    "q2_k": (0.1226, 1.1),
    "iq3_xxs": (0.0876, 2.2),
    "q3_k_s": (0.0415, 1.3),
    "q3_k_m": (0.0216, 1.4),
    "iq4_xs": (0.0100, 1.6),
    "q4_0": (0.0117, 1.0),
    "q4_k_s": (0.0069, 1.2),
    "q4_k_m": (0.0070, 1.25),
    "q5_k_m": (0.0021, 1.5),
    "q6_k": (0.0006, 1.8),
    "q8_0": (0.0002, 1.7),
    "f16": (0.0000002, 3.0),
}


class Told:
    """Answers from a table, and notes what was asked."""

    def __init__(self, table: dict[str, tuple[float, float]], kl: float = math.inf, most_ms: float = math.inf) -> None:
        self.table, self.kl, self.most_ms = table, kl, most_ms
        self.compared: set[str] = set()

    def near(self, quant: str) -> bool:
        return self.nats(quant) <= self.kl

    def quick(self, quant: str) -> bool:
        return self.ms(quant) <= self.most_ms

    def nats(self, quant: str) -> float:
        self.compared.add(quant)
        return self.table[quant][0]

    def ms(self, quant: str) -> float:
        return self.table[quant][1]


def everything(told: Told, prefer: Prefer) -> str | None:
    """The same by trying all."""
    passing = [quant for quant in told.table if told.near(quant) and told.quick(quant)]
    if not passing:
        return None
    fastest = min(told.ms(quant) for quant in passing)
    match prefer:
        case "smallest":
            return passing[0]
        case "fastest":
            return next(quant for quant in passing if told.ms(quant) <= 1.05 * fastest)
        case "nearest":
            return min(passing, key=told.nats)


def same_as_everything(table: dict[str, tuple[float, float]], prefer: Prefer, **limits: float) -> set[str]:
    """What was compared with the model on the way."""
    told = Told(table, **limits)
    assert search(list(table), prefer, told) == everything(Told(table, **limits), prefer), (prefer, limits)
    return told.compared


LIMITS = [0.0, *(nats for nats, _ in TABLE.values()), 1.0]


@pytest.mark.parametrize("prefer", ["smallest", "fastest", "nearest"])
@pytest.mark.parametrize("most_ms", [math.inf, 1.45, 1.05, 0.5])
def test_measured_figures(prefer: Prefer, most_ms: float) -> None:
    for kl in LIMITS:
        compared = same_as_everything(TABLE, prefer, kl=kl, most_ms=most_ms)
        if prefer == "smallest" and most_ms == math.inf:
            assert len(compared) <= 8, "bisection of 14 takes 4, and a few neighbours"


def test_any_two_pairs_of_neighbours_may_be_the_wrong_way() -> None:
    names, figures = list(TABLE), sorted(TABLE.values(), reverse=True)
    for swaps in combinations(range(len(names) - 1), 2):
        order: list[Any] = list(figures)
        for at in swaps:
            order[at], order[at + 1] = order[at + 1], order[at]
        table = dict(zip(names, order, strict=True))
        for kl in LIMITS:
            same_as_everything(table, "smallest", kl=kl)


def test_bisection_alone_would_miss_a_smaller_one() -> None:
    """q2_k passes though the larger iq3_xxs does not: found only because neighbours are tried."""
    table = {name: (1.0 if name == "iq3_xxs" else nats, ms) for name, (nats, ms) in TABLE.items()}
    assert search(list(table), "smallest", Told(table, kl=0.2)) == "iq2_m"
    assert search([], "smallest", Told(table)) is None
