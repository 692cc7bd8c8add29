"""What `assay score` says: one JSON object, a table to read, a CSV with a line per summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evalsuite.metrics.bertscore import BertScorer
from evalsuite.metrics.buckets import BUCKETS, buckets
from evalsuite.metrics.faithful import ordinary_words
from evalsuite.metrics.oracle import oracle_extractive
from evalsuite.metrics.score_rows import ScoreRow
from evalsuite.metrics.scores import TextScores, score_documents, unit_of
from evalsuite.metrics.text import lead_3
from evalsuite.report.predictions_csv import predictions_csv
from evalsuite.results import Interval, Prediction
from evalsuite.stats import interval_of_mean

_BASELINE_LIST = """
    rouge1 rouge2 rougeL rougeLsum bleu chrf meteor meteor_exact_stem bertscore_f1 length_ratio"""
_BASELINE_COLUMNS = tuple(_BASELINE_LIST.split())
_BASELINES: Mapping[str, Callable[[ScoreRow], str]] = {  # of rows that have documents
    "lead-3": lambda row: lead_3(row.document or ""),
    "oracle-extractive": lambda row: oracle_extractive(row.document or "", row.references),
}


@dataclass(frozen=True)
class ScoreReport:
    """Scores of the predictions and of the baselines, the failure buckets, and what could not be computed.

    A document counts once: of several predictions of it the mean is taken first, so that intervals resample documents.
    """

    rows: Sequence[ScoreRow]
    documents: int
    scores: TextScores  # by prediction, as the rows
    figures: Mapping[str, float]  # the mean over documents, or the figure over the corpus of predictions
    intervals: Mapping[str, Interval]  # of the means over documents; figures over the corpus have none
    baselines: Mapping[str, TextScores]
    buckets: Sequence[tuple[str, ...]]  # per row
    left_out: Mapping[str, str]  # metric -> why


def make_report(
    rows: Sequence[ScoreRow], *, stemming: bool, bert: BertScorer | None, left_out: Mapping[str, str]
) -> ScoreReport:
    """Score the rows and, where they have documents, what lead-3 and the extractive oracle would have written."""
    predictions_of: dict[str, list[int]] = defaultdict(list)  # document -> where its predictions are in the rows
    for at, row in enumerate(rows):
        predictions_of[row.document_id].append(at)
    groups = list(predictions_of.values())
    scores = _scored(rows, [row.prediction for row in rows], stemming, bert)
    by_document = {
        name: [fmean(values[at] for at in group) for group in groups] for name, values in scores.by_document.items()
    }
    baselines = {}
    first = [rows[group[0]] for group in groups]
    if first[0].document is not None:
        for label, text_of in _BASELINES.items():
            baselines[label] = _scored(first, [text_of(row) for row in first], stemming, bert)
    ordinary = ordinary_words(text for row in first for text in (row.document or "", *row.references))
    return ScoreReport(
        rows,
        len(groups),
        scores,
        {name: fmean(values) for name, values in by_document.items()} | dict(scores.corpus),
        {name: interval_of_mean(values) for name, values in by_document.items()},
        baselines,
        [buckets(row.document, row.references, row.prediction, row.stop, ordinary) for row in rows],
        left_out,
    )


def _scored(rows: Sequence[ScoreRow], texts: Sequence[str], stemming: bool, bert: BertScorer | None) -> TextScores:
    documents = [row.document for row in rows if row.document is not None] or None
    return score_documents(documents, [row.references for row in rows], texts, stemming=stemming, bert=bert)


def bucket_counts(report: ScoreReport) -> dict[str, int]:
    """Summaries per bucket, every bucket named."""
    counts = Counter(name for found in report.buckets for name in found)
    return {name: counts[name] for name in BUCKETS}


def report_object(report: ScoreReport) -> dict[str, Any]:
    """For --json: each metric's figure under its name, counts, then intervals, baselines, buckets and signatures."""
    return {
        "n": report.documents,
        "predictions": len(report.rows),
        **report.figures,
        "intervals": {name: {"low": found.low, "high": found.high} for name, found in report.intervals.items()},
        "baselines": {label: scores.means() for label, scores in report.baselines.items()},
        "buckets": bucket_counts(report),
        "signatures": dict(report.scores.signatures),
        "left_out": dict(report.left_out),
    }


def report_text(report: ScoreReport) -> str:
    """The tables, and below them what failed and how each figure was computed."""
    parts = [_head(report), "", *_metric_lines(report)]
    if report.baselines:
        parts += ["", *_baseline_lines(report)]
    counts = {name: count for name, count in bucket_counts(report).items() if count}
    failed = sum(1 for found in report.buckets if found)
    parts += ["", f"failures: {failed} of {len(report.rows)} summaries"]
    width = max(map(len, counts), default=0)
    parts += [f"  {name:<{width}}  {count:>4}  {BUCKETS[name]}" for name, count in counts.items()]
    parts += ["", "how they were computed:"]
    parts += [f"  {name}: {signature}" for name, signature in report.scores.signatures.items()]
    parts += [f"  {name}: left out, {why}" for name, why in report.left_out.items()]
    return "\n".join(parts)


def _head(report: ScoreReport) -> str:
    fewest, most = (pick(len(row.references) for row in report.rows) for pick in (min, max))
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    documents = "" if report.rows[0].document is not None else "; no documents, so nothing is compared with them"
    of = "" if report.documents == len(report.rows) else f" of {report.documents} documents, each of which counts once"
    return (
        f"{len(report.rows)} summaries{of}, {count} reference{'s' if most > 1 else ''} each{documents}. "
        "Means over documents, 95% bootstrap intervals."
    )


def _metric_lines(report: ScoreReport) -> list[str]:
    lines = [("metric", "unit", "figure", "95% interval", "n")]
    n = str(report.documents)
    for name, figure in report.figures.items():
        form = ".2f" if unit_of(name) == "0-100" else ".3f"
        found = report.intervals.get(name)
        between = f"{found.low:{form}} … {found.high:{form}}" if found else "over the corpus"
        lines.append((name, unit_of(name), f"{figure:{form}}", between, n))
    return _aligned(lines, left=2)


def _baseline_lines(report: ScoreReport) -> list[str]:
    columns = [name for name in _BASELINE_COLUMNS if name in report.figures]
    lines = [("summaries by", *columns)]
    baselines = {label: scores.means() for label, scores in report.baselines.items()}
    for label, means in {"predictions": report.figures, **baselines}.items():
        lines.append((label, *(f"{means[name]:.2f}" for name in columns)))
    return _aligned(lines, left=1)


def _aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of one width each; the first `left` begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [aligned[0], "-" * max(map(len, aligned)), *aligned[1:]]


def report_csv(report: ScoreReport) -> str:
    """One line per summary: see `predictions_csv`."""
    return predictions_csv(
        [
            Prediction(
                row.id,
                row.document or "",
                tuple(row.references),
                row.prediction,
                row.stop,
                None,
                {name: values[index] for name, values in report.scores.by_document.items()},
                report.buckets[index],
            )
            for index, row in enumerate(report.rows)
        ]
    )
