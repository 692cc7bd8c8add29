"""The report's table of further text metrics: overlap, meaning, length, copying, inventions; and their signatures."""

from __future__ import annotations

from dataclasses import dataclass

from evalsuite.report.table import Cell, Line, Table, columns_of, interval_cell, tasks_of
from evalsuite.results import Results, Task

_OVERLAP = "Overlap with the references"
_MEANING = "Nearness in meaning"
_SHAPE = "Length, copying, repetition"
_INVENTED = "Not in the document, nor in a reference"


@dataclass(frozen=True)
class _Metric:
    name: str
    unit: str
    better: str
    group: str
    digits: int = 1
    scale: float = 1.0


_CORPUS = {
    "bleu": _Metric("BLEU", "0-100, all documents as one", "↑", _OVERLAP),
    "chrf": _Metric("chrF", "0-100, all documents as one", "↑", _OVERLAP),
}
_METRICS = {
    "rouge1_mean": _Metric("ROUGE-1, mean of references", "0-100", "↑", _OVERLAP),
    "rouge2_mean": _Metric("ROUGE-2, mean of references", "0-100", "↑", _OVERLAP),
    "rougeL_mean": _Metric("ROUGE-L, mean of references", "0-100", "↑", _OVERLAP),
    "rougeLsum_mean": _Metric("ROUGE-Lsum, mean of references", "0-100", "↑", _OVERLAP),
    "bleu_sentence": _Metric("BLEU by document", "0-100", "↑", _OVERLAP),
    "chrf_sentence": _Metric("chrF by document", "0-100", "↑", _OVERLAP),
    "meteor": _Metric("METEOR", "0-100", "↑", _OVERLAP),
    "meteor_exact_stem": _Metric("METEOR, without synonyms", "0-100", "↑", _OVERLAP),
    "bertscore_precision": _Metric("BERTScore, precision", "0-100", "↑", _MEANING),
    "bertscore_recall": _Metric("BERTScore, recall", "0-100", "↑", _MEANING),
    "bertscore_f1": _Metric("BERTScore, F1", "0-100", "↑", _MEANING),
    "length_ratio": _Metric("length", "× the reference's words", "", _SHAPE, 2),
    "novelty_1": _Metric("new words", "% not in the document", "", _SHAPE, 1, 100),
    "novelty_2": _Metric("new word pairs", "% not in the document", "", _SHAPE, 1, 100),
    "novelty_3": _Metric("new word triples", "% not in the document", "", _SHAPE, 1, 100),
    "coverage": _Metric("copied words", "% (coverage)", "", _SHAPE, 1, 100),
    "density": _Metric("length of copied phrases", "words (density)", "", _SHAPE, 2),
    "repetition": _Metric("repeated runs of four words", "%", "↓", _SHAPE, 1, 100),
    "invented_numbers": _Metric("invented numbers", "per summary", "↓", _INVENTED, 2),
    "invented_names": _Metric("invented names", "per summary", "↓", _INVENTED, 2),
}
NAMES = (*_CORPUS, *_METRICS)


def scores_table(results: Results) -> Table | None:
    """Every further metric that any artifact has; None where there is none. One without words keeps its name."""
    tasks = tasks_of(results)
    lines = [
        Line(metric.name, metric.unit, metric.better, tuple(_corpus(task, name) for task in tasks), metric.group)
        for name, metric in _CORPUS.items()
    ]
    named = {name for task in tasks for name in task.scores}
    metrics = _METRICS | {name: _Metric(name, "", "", "Others", 3) for name in sorted(named - _METRICS.keys())}
    lines += [
        Line(metric.name, metric.unit, metric.better, tuple(_score(task, name, metric) for task in tasks), metric.group)
        for name, metric in metrics.items()
    ]
    table = Table.of(columns_of(results), lines)
    return table if table.lines else None


def _corpus(task: Task, name: str) -> Cell:
    return Cell(f"{task.corpus[name]:.1f}") if name in task.corpus else Cell()


def _score(task: Task, name: str, metric: _Metric) -> Cell:
    return interval_cell(task.scores[name], metric.digits, metric.scale) if name in task.scores else Cell()
