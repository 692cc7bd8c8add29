"""The winner of a choice: exported to stay, or taken as a run that was killed before it said so has left it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.files import write_whole
from export.quantize import LADDER
from flow.quant_bench import Bench

if TYPE_CHECKING:
    from export.to_gguf import Check

_WINNER_FILE = "winner.json"


@dataclass(frozen=True)
class Left:
    """What an earlier run was about to keep."""

    quant: str
    digest: str


def left_in(work: Path) -> Left | None:
    """The winner that a run noted in the work folder, made or not."""
    try:
        left = Left(**json.loads((work / _WINNER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    known = isinstance(left.quant, str) and left.quant in LADDER and isinstance(left.digest, str)
    return left if known else None


def kept(bench: Bench, chosen: str | None, out: Path, work: Path, check: Check) -> Artifact | None:
    """The winner in `out`, alone: what an earlier run left there is taken only if it is the same, checked as asked.

    Raises:
        AssayError: it is not intact, somebody else's folder is in the way, or as `export_gguf`.
    """
    left = left_in(work)
    there = None if left is None else _made(left, out)
    if there is not None:
        same = chosen is not None and there.digest == bench.figures[chosen].digest
        if same and (check == "structure" or "logits" in there.manifest.measurements):
            there.verify()
            return there
        bench.discard(there)
    if chosen is None:
        return None
    winner = Left(chosen, str(bench.figures[chosen].digest))
    write_whole(work / _WINNER_FILE, json.dumps(asdict(winner)))
    return bench.keep(chosen, out, check)


def _made(left: Left, out: Path) -> Artifact | None:
    """The artifact, if it is that run's own."""
    try:
        there = open_artifact(out / left.quant)
    except AssayError:
        return None
    return there if there.digest == left.digest else None
