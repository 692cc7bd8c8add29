"""The evaluation folder: written whole, replaced only if it is one of ours; and the verdict beside each artifact."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from contract.artifact import MANIFEST_FILE, MEASURED_FOLDER, Artifact, open_artifact, sha256_of
from contract.drafts import hold_draft, remove_abandoned, sync, sync_path
from contract.errors import AssayError, listed
from contract.files import write_whole
from contract.history import Evaluation, finish
from contract.verdict import VERDICT_FILE, Verdict
from evalsuite.cache import CACHE_FOLDER
from evalsuite.report.predictions_csv import predictions_csv
from evalsuite.report.terminal import csv_table
from evalsuite.results import (
    CSV_FILE,
    METRICS_FILE,
    PDF_FILE,
    PLOTS_FOLDER,
    PREDICTIONS_FOLDER,
    REPORT_FILE,
    SIGNED_FOLDER,
    Prediction,
    Results,
    write_predictions,
    write_results,
)

_FILES = (CSV_FILE, REPORT_FILE, PDF_FILE, SIGNED_FOLDER)  # what a killed one may leave without its figures
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def refuse_foreign_folder(out: Path) -> None:
    """Raise where writing an evaluation to `out` would touch what is not one."""
    if out.is_file():
        raise AssayError("the output is a file", where=str(out), hint="give another --out")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise AssayError("the output folder cannot be written", where=str(there), hint="give another --out")
    inside = next((path for path in out.resolve().parents if (path / MANIFEST_FILE).is_file()), None)
    if inside is not None and out.resolve().relative_to(inside).parts[0] != MEASURED_FOLDER:
        raise AssayError(
            "an evaluation inside an artifact would change its files",
            where=str(out),
            got=f"the artifact {inside}",
            hint="give another --out",
        )
    there_already = {path.name for path in out.iterdir()} if out.is_dir() else set()
    begun = there_already <= {CACHE_FOLDER, VERDICT_FILE, PREDICTIONS_FOLDER, PLOTS_FOLDER, *_FILES}
    if MANIFEST_FILE in there_already or (METRICS_FILE not in there_already and not begun):
        raise AssayError(
            "the output folder holds something that is not an evaluation",
            where=str(out),
            got=listed(sorted(there_already)),
            hint="give another --out",
        )


def refuse_inside(out: Path, artifacts: Iterable[Artifact]) -> None:
    """Raise where an evaluation would lie in a folder that it evaluates; what Assay did not make has no manifest."""
    for artifact in artifacts:
        if artifact.foreign and artifact.path.is_dir() and out.resolve().is_relative_to(artifact.path.resolve()):
            raise AssayError(
                "an evaluation inside an artifact would change its files",
                where=str(out),
                got=f"the artifact {artifact.path}",
                hint="give another --out",
            )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What is in the way of writing an evaluation to `out` becomes one message.

    Raises:
        AssayError: the disk is full or read-only, or the folder is somebody else's. What was found so far is kept.
    """
    try:
        yield
    except OSError as error:
        ours = str(error.filename).startswith((str(out), str(out.parent / f".{out.name}.")))
        if error.errno not in _DISK_ERRORS and not ours:
            raise
        raise AssayError(
            "the evaluation could not be written",
            where=str(out),
            got=str(error),
            hint="make room, and run it again: what was measured so far is kept",
        ) from error


def write_evaluation(
    out: Path,
    results: Results,
    evaluation: Evaluation,
    predictions: Mapping[str, Sequence[Prediction]],
    against: Sequence[str] = (),
    counted: Sequence[Verdict] | None = None,
) -> Evaluation:
    """Write predictions, table, report, figures and verdicts.

    Everything is made beside `out` first. The verdict file, which says until then that the evaluation is not finished,
    is replaced last, so that a verdict is never next to figures it is not about.

    Args:
        out: the evaluation folder.
        results: the figures.
        evaluation: what it rests on, and the verdicts.
        predictions: by label.
        against: what earlier evaluations say against what passes here, a line each.
        counted: the verdicts as they count with all earlier ones; None: as they are.

    Returns:
        The evaluation, finished: bound to the figures as they were written.
    """
    from evalsuite.report.content import content
    from evalsuite.report.html import write_report
    from evalsuite.report.pdf import write_pdf
    from evalsuite.report.plots import write_plots

    refuse_foreign_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out)
    held = hold_draft(out)
    made = held.path
    try:
        (made / PREDICTIONS_FOLDER).mkdir(parents=True)
        for label, rows in predictions.items():
            write_predictions(made / PREDICTIONS_FOLDER / f"{label}.jsonl", rows)
            write_whole(made / PREDICTIONS_FOLDER / f"{label}.csv", predictions_csv(rows), errors="replace")
        counted = evaluation.verdicts if counted is None else counted
        (made / CSV_FILE).write_text(csv_table(results, counted), encoding="utf-8")
        write_results(made / METRICS_FILE, results)
        basis = replace(evaluation.basis, metrics_sha256=sha256_of(made / METRICS_FILE))
        finished = replace(evaluation, basis=basis, finished=True)
        told = content(results, evaluation.verdicts, made / PREDICTIONS_FOLDER, against, counted)
        write_report(told, made / REPORT_FILE)
        write_plots(results, made / PLOTS_FOLDER)
        write_pdf(told, made / PDF_FILE)
        sync(made)  # while the figures change, the verdict file says that the evaluation is not finished
        for folder in (PREDICTIONS_FOLDER, PLOTS_FOLDER, SIGNED_FOLDER):  # what was signed was of the old figures
            shutil.rmtree(out / folder, ignore_errors=True)
        for name in (PREDICTIONS_FOLDER, PLOTS_FOLDER, CSV_FILE, REPORT_FILE, PDF_FILE, METRICS_FILE):
            (made / name).rename(out / name)
        sync_path(out)  # the figures are there before the new verdict
        finish(out / VERDICT_FILE, finished)
    finally:
        held.release()
    return finished


def refuse_edited(folder: Path, evaluation: Evaluation) -> None:
    """Raise where metrics.json is no longer what the verdicts were made from."""
    found = sha256_of(folder / METRICS_FILE)
    if evaluation.basis.metrics_sha256 != found:
        raise AssayError(
            "the figures are not those that were judged: metrics.json was edited",
            where=str(folder / METRICS_FILE),
            expected=f"sha256 {evaluation.basis.metrics_sha256}",
            got=found,
            hint="run assay eval again",
        )


def refuse_changed(results: Results) -> None:
    """Hash every artifact again.

    Raises:
        AssayError: naming all whose files are gone or no longer those that were scored.
    """
    problems = []
    for row in results.rows:
        if row.kind == "endpoint":
            continue
        try:
            digest = open_artifact(row.path, verify=True).digest
        except AssayError as error:
            problems.append(f"{row.label}: {error.what} ({error.got or row.path})")
            continue
        if digest != row.digest:
            problems.append(f"{row.label}: digest {digest[:12]}, {row.digest[:12]} was scored")
    if problems:
        raise AssayError(
            "the artifacts are no longer those that were scored",
            got="\n    " + "\n    ".join(problems),
            hint="run assay eval again",
        )
