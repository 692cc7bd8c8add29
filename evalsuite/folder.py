"""The evaluation folder: written whole, replaced only if it is one of ours; and the verdict beside each artifact."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from contract.artifact import MANIFEST_FILE, MEASURED_FOLDER, Artifact, open_artifact
from contract.drafts import hold_draft, remove_abandoned, sync, sync_path
from contract.errors import AssayError, listed
from contract.files import write_whole
from contract.verdict import VERDICT_FILE, Verdict, write_verdicts
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
    Prediction,
    Results,
    Row,
    Unloadable,
    write_predictions,
    write_results,
)

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
    if there_already - {CACHE_FOLDER} and METRICS_FILE not in there_already:
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
    out: Path, results: Results, verdicts: Sequence[Verdict], predictions: Mapping[str, Sequence[Prediction]]
) -> None:
    """Write predictions, table, report, figures and verdicts.

    Everything is made beside `out` first. The old verdict goes before anything is replaced and the new one comes last,
    so that a verdict is never next to figures it is not about.
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
        (made / CSV_FILE).write_text(csv_table(results, verdicts), encoding="utf-8")
        write_results(made / METRICS_FILE, results)
        write_verdicts(made / VERDICT_FILE, verdicts)
        told = content(results, verdicts, made / PREDICTIONS_FOLDER)
        write_report(told, made / REPORT_FILE)
        write_plots(results, made / PLOTS_FOLDER)
        write_pdf(told, made / PDF_FILE)
        sync(made)
        (out / VERDICT_FILE).unlink(missing_ok=True)
        sync_path(out)  # the old verdict is gone before the figures change, whenever the power fails
        for folder in (PREDICTIONS_FOLDER, PLOTS_FOLDER):
            shutil.rmtree(out / folder, ignore_errors=True)
        for name in (PREDICTIONS_FOLDER, PLOTS_FOLDER, CSV_FILE, REPORT_FILE, PDF_FILE, METRICS_FILE):
            (made / name).rename(out / name)
        sync_path(out)  # and the figures are there before the new one
        (made / VERDICT_FILE).rename(out / VERDICT_FILE)
        sync_path(out)
    finally:
        held.release()


def stamp(results: Results, verdicts: Sequence[Verdict]) -> None:
    """Put each verdict beside the artifact it is about, where Assay made it; a server looks for it there.

    A folder whose manifest now names another digest is left alone.
    """
    judged: dict[str, Row | Unloadable] = {row.label: row for row in results.rows}
    judged |= {artifact.label: artifact for artifact in results.unloadable}
    for verdict in verdicts:
        row = judged[verdict.label]
        if row.foreign:
            continue
        artifact = open_artifact(row.path)
        if artifact.digest == row.digest:
            try:
                write_verdicts(artifact.folder / VERDICT_FILE, [verdict])
            except OSError as error:
                with suppress(OSError):  # an earlier one is not about these figures
                    (artifact.folder / VERDICT_FILE).unlink(missing_ok=True)
                print(
                    f"note: no verdict beside {row.path} ({error.strerror}): serve it with --verdict", file=sys.stderr
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
