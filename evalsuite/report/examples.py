"""Summaries side by side for the report: which documents are shown, chosen by rule, and how the summaries differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evalsuite.report.word_diff import Span, word_diff
from evalsuite.report.words import trained_pair
from evalsuite.results import Prediction, Results, read_predictions

_EXAMPLES = 6


@dataclass(frozen=True)
class Told:
    """A summary of an example document, and which artifacts wrote it."""

    labels: tuple[str, ...]
    spans: tuple[Span, ...]
    rouge_l: float
    tokens: int | None
    stop: Literal["eos", "length", "unknown"]


@dataclass(frozen=True)
class Shown:
    """An example document, why it was chosen, and everybody's summary of it."""

    id: str
    why: str
    document: str
    references: tuple[str, ...]
    told: tuple[Told, ...]


def read_all(results: Results, folder: Path) -> dict[str, list[Prediction]]:
    """The predictions of every row that has a file, by label.

    Raises:
        AssayError: a file is damaged.
    """
    paths = {row.label: folder / f"{row.label}.jsonl" for row in results.rows}
    return {label: read_predictions(path) for label, path in paths.items() if path.is_file()}


def reference_label(results: Results) -> str | None:
    """Whose summaries the others' words are compared with: the trained adapter, or what the first candidate was."""
    pair = trained_pair(results)
    if pair is not None:
        return pair[1].label
    for row in results.rows:
        for comparison in row.comparisons:
            return comparison.reference_label
    return None


def examples_shown(results: Results, predictions: Mapping[str, Sequence[Prediction]]) -> list[Shown]:
    """A handful of documents with everybody's summary; words that differ from the reference artifact's are marked."""
    if not predictions:
        return []
    reference = reference_label(results)
    anchor = reference if reference is not None and reference in predictions else next(iter(predictions))
    by_id = {label: {prediction.id: prediction for prediction in rows} for label, rows in predictions.items()}
    pair = trained_pair(results)
    unmarked = {anchor} | ({pair[0].label} if pair else set())  # before training every word differs
    shown = []
    for chosen, why in _chosen(predictions[anchor], by_id, anchor):
        same: dict[tuple[object, ...], list[str]] = {}
        for label, rows in by_id.items():
            if chosen.id in rows:
                mine = rows[chosen.id]
                same.setdefault((mine.prediction, mine.tokens, mine.stop), []).append(label)
        told = [
            _told(labels, by_id[labels[0]][chosen.id], None if unmarked & {*labels} else chosen)
            for labels in same.values()
        ]
        shown.append(Shown(chosen.id, why, chosen.document, chosen.references, tuple(told)))
    return shown


def _told(labels: Sequence[str], prediction: Prediction, reference: Prediction | None) -> Told:
    text = prediction.prediction.strip()
    if reference is not None:
        spans = _spaced(word_diff(reference.prediction.strip(), text))
    else:
        spans = [Span(text, "same")] if text else []
    return Told(tuple(labels), tuple(spans), prediction.rouge_l, prediction.tokens, prediction.stop)


def _spaced(spans: Sequence[Span]) -> list[Span]:
    """With a space between a missing word at the beginning and what stands in its place."""
    first = bool(spans) and spans[0].kind == "missing"
    return [Span(f" {s.text}", s.kind) if at == 1 and first and not s.lead else s for at, s in enumerate(spans)]


def _chosen(
    rows: Sequence[Prediction], by_id: Mapping[str, Mapping[str, Prediction]], anchor: str
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
