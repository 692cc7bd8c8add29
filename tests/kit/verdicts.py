"""Verdict files as a finished evaluation leaves them, without an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.history import Evaluation, begin, finish
from contract.limits import GatePart
from contract.verdict import Basis, Verdict


def limits(**changes: Any) -> dict[str, Any]:
    """The default limits as a verdict records them, but for what is changed."""
    return GatePart.model_validate(changes).model_dump(mode="json", exclude={"require"})


def basis(count: int = 300, **changes: Any) -> Basis:
    """Of so many documents, named by number, under the default limits."""
    values: dict[str, Any] = {
        "data_sha256": f"{count:064x}",
        "documents": tuple(f"{number:032x}" for number in range(count)),
        "limits": limits(),
        "generate": {"max_new_tokens": 64, "prompt": None},
        "versions": {"assay": "1"},
        "time_utc": "2026-01-01T00:00:00+00:00",
        "metrics_sha256": "0" * 64,
    }
    return Basis(**{**values, **changes})


def evaluation(*verdicts: Verdict, on: Basis | None = None) -> Evaluation:
    """A finished one."""
    return Evaluation(on or basis(), tuple(dict.fromkeys(v.digest for v in verdicts)), tuple(verdicts), finished=True)


def write_verdicts(path: Path, verdicts: Sequence[Verdict], on: Basis | None = None) -> None:
    """One more finished evaluation in a verdict file."""
    finish(path, evaluation(*verdicts, on=on))


def write_begun(path: Path, digest: str, on: Basis | None = None) -> None:
    """One that was begun, and not finished."""
    begin(path, Evaluation(on or basis(), (digest,)))
