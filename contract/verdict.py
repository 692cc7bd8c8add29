"""The Verdict: what the gate says of one artifact, bound to its digest, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from contract.files import read_versioned, write_whole

Outcome = Literal["pass", "fail", "inconclusive"]
VERDICT_FILE = "verdict.json"
VERDICT_SCHEMA = 1


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
class Verdict:
    """The gate's word on one artifact. `compared_with` is the digest of what it was judged against."""

    label: str  # "merged", "q4_k_m" …
    digest: str
    outcome: Outcome
    reasons: tuple[Reason, ...]
    compared_with: str | None = None


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """fail before inconclusive before pass."""
    order: tuple[Outcome, ...] = ("fail", "inconclusive")
    for outcome in order:
        if outcome in outcomes:
            return outcome
    return "pass"


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write all verdicts into one file, whole or not at all."""
    body = json.dumps({"schema": VERDICT_SCHEMA, "verdicts": [asdict(v) for v in verdicts]}, indent=2, allow_nan=False)
    write_whole(path, body + "\n")


def read_verdicts(path: Path) -> list[Verdict]:
    """Read what `write_verdicts` wrote; `path` is the file or the evaluation folder it lies in.

    Raises:
        AssayError: there is no such file or it is not one of ours.
    """
    path = path / VERDICT_FILE if path.is_dir() else path
    return read_versioned(path, "verdict file", VERDICT_SCHEMA, _verdicts)


def _verdicts(data: dict[str, Any]) -> list[Verdict]:
    return [Verdict(**{**v, "reasons": tuple(Reason(**r) for r in v["reasons"])}) for v in data["verdicts"]]
