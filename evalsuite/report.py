"""The report: one HTML file that says what was found, and needs nothing beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import Parent, open_artifact
from contract.errors import AssayError
from contract.verdict import Reason, Verdict
from evalsuite.plots import draw_plots
from evalsuite.report_table import table
from evalsuite.report_words import answers, size, task_warnings, trained_pair
from evalsuite.results import Prediction, Results, Row, read_predictions
from evalsuite.word_diff import Span, word_diff

_EXAMPLES = 6


@dataclass(frozen=True)
class Told:
    """One artifact's summary of an example document."""

    label: str
    spans: tuple[Span, ...]
    rouge_l: float
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Shown:
    """An example document, why it was chosen, and everybody's summary of it."""

    id: str
    why: str
    document: str
    references: tuple[str, ...]
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from, as far as its manifest says."""

    row: Row
    parents: tuple[Parent, ...]
    tools: dict[str, str]


def write_report(results: Results, verdicts: Sequence[Verdict], predictions_folder: Path, out_path: Path) -> None:
    """Write report.html: verdicts, answers, table, plots, summaries side by side, environment and lineage.

    Args:
        results: what was measured.
        verdicts: what the gate made of it.
        predictions_folder: holds LABEL.jsonl for the rows; a row without one has no summaries shown.
        out_path: the file; replaced whole.

    Raises:
        AssayError: a predictions file is damaged, or matplotlib or jinja2 is not installed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, data_uri=_data_uri)
    columns, lines = table(results)
    judged = {verdict.label: verdict for verdict in verdicts}
    required = {label: judged[label].outcome if label in judged else "inconclusive" for label in results.require}
    html = environment.get_template("report.html.jinja").render(
        results=results,
        verdicts=[(verdict, _deciding(verdict)) for verdict in verdicts],
        required=required,
        proven=bool(required) and set(required.values()) == {"pass"},
        answers=answers(results, verdicts),
        warnings=task_warnings(results),
        columns=columns,
        lines=lines,
        plots=draw_plots(results),
        shown=_shown(results, predictions_folder),
        reference=_reference_label(results),
        origins=[_origin(row) for row in results.rows],
        limits=list(_flat(results.limits)),
    )
    partial = out_path.with_name(f".{out_path.name}.partial-{os.getpid()}")
    partial.write_text(html, encoding="utf-8", errors="replace")  # a lone surrogate in user text has no UTF-8 form
    partial.replace(out_path)


def _deciding(verdict: Verdict) -> list[Reason]:
    """The reasons that made a verdict what it is; for a pass, those that come nearest to their limit."""
    against = [reason for reason in verdict.reasons if reason.outcome == verdict.outcome != "pass"]
    if against:
        return against
    measured = [r for r in verdict.reasons if r.value is not None and r.limit and r.low is not None]
    return sorted(measured, key=lambda reason: -_share_of_limit(reason))[:3] or list(verdict.reasons[:3])


def _share_of_limit(reason: Reason) -> float:
    """How much of what is allowed was used: 1 is at the limit. Shares that must be high count by what they lack."""
    assert reason.value is not None
    assert reason.limit
    if reason.code.endswith(("top1_gold", "top1_greedy")) and reason.limit < 1:
        return (1 - reason.value) / (1 - reason.limit)
    if reason.code.startswith("perplexity_ratio") and reason.limit > 1:
        return (reason.value - 1) / (reason.limit - 1)
    return reason.value / reason.limit


def _reference_label(results: Results) -> str | None:
    """Whose summaries the others' words are compared with: the trained adapter, or what the first candidate was."""
    pair = trained_pair(results)
    if pair is not None:
        return pair[1].label
    for row in results.rows:
        for comparison in row.comparisons:
            return comparison.reference_label
    return None


def _shown(results: Results, folder: Path) -> list[Shown]:
    told = {
        row.label: read_predictions(path) for row in results.rows if (path := folder / f"{row.label}.jsonl").is_file()
    }
    if not told:
        return []
    reference = _reference_label(results)
    anchor = reference if reference in told else next(iter(told))
    by_id = {label: {prediction.id: prediction for prediction in rows} for label, rows in told.items()}
    pair = trained_pair(results)
    unmarked = {anchor} | ({pair[0].label} if pair else set())  # before training every word differs
    shown = []
    for prediction, why in _chosen(told[anchor], by_id, anchor):
        mine = [(label, rows[prediction.id]) for label, rows in by_id.items() if prediction.id in rows]
        shown.append(
            Shown(
                prediction.id,
                why,
                prediction.document,
                prediction.references,
                tuple(
                    _told(label, other, None if label in unmarked else prediction.prediction) for label, other in mine
                ),
            )
        )
    return shown


def _told(label: str, prediction: Prediction, reference: str | None) -> Told:
    text = prediction.prediction.strip()
    spans = word_diff(reference.strip(), text) if reference is not None else [Span(text, "same")] if text else []
    return Told(label, tuple(spans), prediction.rouge_l, prediction.tokens, prediction.stop == "eos")


def _chosen(
    rows: Sequence[Prediction], by_id: dict[str, dict[str, Prediction]], anchor: str
) -> list[tuple[Prediction, str]]:
    """A handful of documents, chosen by rule and not by hand: good, middling and bad ones, and where artifacts part."""
    ranked = sorted(rows, key=lambda prediction: (-prediction.rouge_l, prediction.id))

    def apart(prediction: Prediction) -> float:
        mine = [
            others[prediction.id].rouge_l
            for label, others in by_id.items()
            if label != "base" and prediction.id in others
        ]
        return max(mine) - min(mine) if mine else 0.0

    parted = sorted(rows, key=lambda prediction: (-apart(prediction), prediction.id))
    wishes = (
        [
            (rows[0], "the first document"),
            (ranked[0], f"{anchor}'s best by ROUGE-L"),
            (ranked[len(ranked) // 2], f"{anchor}'s median by ROUGE-L"),
            (ranked[-1], f"{anchor}'s worst by ROUGE-L"),
            *((prediction, "where the artifacts differ most") for prediction in parted[:2]),
        ]
        if rows
        else []
    )
    chosen: dict[str, tuple[Prediction, str]] = {}
    for prediction, why in wishes:
        if prediction.id in chosen:
            chosen[prediction.id] = (prediction, f"{chosen[prediction.id][1]}; {why}")
        else:
            chosen[prediction.id] = (prediction, why)
    return list(chosen.values())[:_EXAMPLES]


def _origin(row: Row) -> Origin:
    """From the manifest, where the artifact still lies where it was scored. A foreign one has none."""
    if row.foreign:
        return Origin(row, (), {})
    try:
        artifact = open_artifact(row.path)
    except AssayError:  # moved away since: the report is about what was scored, and says nothing of its parents
        return Origin(row, (), {})
    same = artifact.digest == row.digest
    return Origin(row, artifact.manifest.parents if same else (), artifact.manifest.tools if same else {})


def _flat(limits: dict[str, Any], prefix: str = "") -> Any:
    for key, value in limits.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
