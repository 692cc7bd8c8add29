"""Judging an evaluation again by other limits: the figures stay, the verdict and the report are written anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contract.verdict import Verdict
from evalsuite.folder import refuse_changed, stamp, write_evaluation
from evalsuite.gate import judge, required
from evalsuite.results import PREDICTIONS_FOLDER, read_predictions, read_results

if TYPE_CHECKING:
    from contract.recipe import GatePart


def rejudge(folder: Path, gate: GatePart) -> list[Verdict]:
    """Judge the evaluation in `folder` by `gate`, write it down there and beside every artifact.

    Raises:
        AssayError: it is not an evaluation, or the artifacts are no longer those that were scored.
    """
    results = read_results(folder)
    results = replace(results, limits=gate.model_dump(mode="json"), require=required(results.rows, gate))
    refuse_changed(results)
    verdicts = judge(results, gate)
    found = {row.label: read_predictions(folder / PREDICTIONS_FOLDER / f"{row.label}.jsonl") for row in results.rows}
    write_evaluation(folder, results, verdicts, dict(found))
    stamp(results, verdicts)
    return verdicts
