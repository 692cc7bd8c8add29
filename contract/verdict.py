"""The Verdict: what the gate says of one artifact, bound to its digest, with all that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive"]
VERDICT_FILE = "verdict.json"
SIGNED_FILE = "verdict.dsse.json"


@dataclass(frozen=True)
class Reason:
    """One check: a stable code, what it found, the figure with its unit and n, the limit, and plain words."""

    code: str  # e.g. "kl_mean", "prompt_ids_differ"
    outcome: Outcome
    text: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    n: int | None = None
    low: float | None = None  # 95% interval, where there is one
    high: float | None = None


@dataclass(frozen=True)
class Above:
    """An artifact that this one hangs from. `outcome` None: the chain begins there, so nothing is measured."""

    label: str
    digest: str
    outcome: Outcome | None


@dataclass(frozen=True)
class Verdict:
    """The gate's word on one artifact. `compared_with` is the digest of what it was judged against."""

    label: str  # "merged", "q4_k_m" …
    digest: str
    outcome: Outcome
    reasons: tuple[Reason, ...]
    compared_with: str | None = None
    chain: tuple[Above, ...] = ()  # all that it was compared with, directly or not, the nearest first


@dataclass(frozen=True)
class Basis:
    """What the verdicts of one evaluation rest on."""

    data_sha256: str
    documents: tuple[str, ...]  # a key for each document that was judged: what its text and references are
    limits: dict[str, Any]  # the gate part of a recipe, but for `require`
    generate: dict[str, Any]  # how summaries were written, prompt included
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    time_utc: str = ""  # when it began, ISO 8601; told, and never compared
    metrics_sha256: str | None = None  # of the figures that were judged; None while it is not finished


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """fail before inconclusive before pass; of nothing at all inconclusive, for nothing was measured."""
    order: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
    return next((outcome for outcome in order if outcome in outcomes), "inconclusive")


def proven(verdicts: Sequence[Verdict], require: Sequence[str]) -> bool:
    """Did everything that is required pass? Nothing required, or nothing judged, proves nothing.

    A label speaks of every artifact of that name: "q4_k_m" of "q4_k_m-2" too.
    """
    return bool(require) and all(
        named and all(v.outcome == "pass" for v in named) for named in _named(verdicts, require)
    )


def missing(verdicts: Sequence[Verdict], require: Sequence[str]) -> list[str]:
    """The required labels that no verdict is about."""
    return [label for label, named in zip(require, _named(verdicts, require), strict=True) if not named]


def _named(verdicts: Sequence[Verdict], require: Sequence[str]) -> list[list[Verdict]]:
    return [[verdict for verdict in verdicts if _is_named(verdict.label, label)] for label in require]


def _is_named(label: str, wanted: str) -> bool:
    head, dash, number = label.rpartition("-")
    return label == wanted or (bool(dash) and head == wanted and number.isdigit())


def is_required(verdict: Verdict, require: Sequence[str]) -> bool:
    """Does one of the required labels speak of it?"""
    return any(_is_named(verdict.label, label) for label in require)
