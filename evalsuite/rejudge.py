"""Judging an evaluation again by other limits: the figures stay, the verdict and the report are written anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import sha256_of
from contract.errors import AssayError
from contract.history import last_judged
from contract.verdict import Verdict
from evalsuite.folder import refuse_changed, writing
from evalsuite.gate import required
from evalsuite.kept import Kept, settle
from evalsuite.results import METRICS_FILE, PREDICTIONS_FOLDER, Prediction, Results, read_predictions, read_results

if TYPE_CHECKING:
    from contract.limits import GatePart


def rejudge(folder: Path, gate: GatePart) -> list[Verdict]:
    """Judge the evaluation in `folder` by `gate`, write it down there and beside every artifact.

    Raises:
        AssayError: it is not an evaluation, its figures or predictions were changed, or the artifacts are no longer
            those that were scored.
    """
    results = read_results(folder)
    last = last_judged(folder, sha256_of(folder / METRICS_FILE))  # one that was killed while it judged is no matter
    require = required(results.rows, gate, results.unloadable)
    results = replace(results, limits=gate.model_dump(mode="json"), require=require)
    refuse_changed(results)
    kept = Kept.of(folder, results)
    limits = gate.model_dump(mode="json", exclude={"require"})
    again = replace(last, basis=replace(last.basis, limits=limits, metrics_sha256=None), verdicts=(), finished=False)
    predictions = _predictions(folder / PREDICTIONS_FOLDER, results)
    with writing(folder):
        kept.begin(again)
        return list(settle(kept, folder, results, gate, again, predictions).verdicts)


def _predictions(folder: Path, results: Results) -> dict[str, list[Prediction]]:
    """By label; every file has the same documents in the same order."""
    found = {row.label: read_predictions(folder / f"{row.label}.jsonl") for row in results.rows}
    first = [prediction.id for prediction in found[results.rows[0].label]] if found else []
    for label, rows in found.items():
        if len(rows) != results.data.documents or [row.id for row in rows] != first:
            raise AssayError(
                "the predictions are not of the documents that were scored",
                where=str(folder / f"{label}.jsonl"),
                expected=f"{results.data.documents} lines, with the same ids in every file",
                got=f"{len(rows)} lines",
                hint="run assay eval again",
            )
    return found
