"""The report's comparison table: a line per metric, a column per artifact, every figure with its n and interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evalsuite.report_words import figure, size
from evalsuite.results import Comparison, Distance, Interval, Results, Row, Speed, TargetSet, Task


@dataclass(frozen=True)
class Cell:
    """A figure, and in small what belongs to it: an interval, and what it was measured on."""

    value: str = "–"
    note: str = ""
    n: str = ""


@dataclass(frozen=True)
class Line:
    """One metric. `unit` is part of its name; `better` is "↑", "↓" or ""; `n` stands here where all cells share it."""

    metric: str
    unit: str
    better: str
    cells: tuple[Cell, ...]
    group: str
    n: str = ""


def table(results: Results) -> tuple[list[str], list[Line]]:
    """The columns' names (artifacts, then baselines) and the lines; lines with no figure at all are left out."""
    rows, tasks = results.rows, [row.task for row in results.rows] + [b.task for b in results.baselines]
    columns = [row.label for row in rows] + [baseline.label for baseline in results.baselines]
    empty = (Cell(),) * len(results.baselines)
    lines = [
        Line(name, "0-100", "↑", tuple(_interval(pick(task), 1) for task in tasks), "Task") for name, pick in _ROUGE
    ]
    lines += [
        Line("names and numbers right", "%", "↑", tuple(map(_facts, tasks)), "Task"),
        Line("end by themselves", "%", "↑", tuple(_share(task.eos_rate, task.rougeL.n) for task in tasks), "Task"),
        Line("length", "tokens", "", tuple(_number(task.tokens_mean) for task in tasks), "Task"),
    ]
    for target, words in (("gold", "reference summaries"), ("greedy", "greedy summaries")):
        lines += _distance_lines(rows, target, words, empty)  # type: ignore[arg-type]
    lines += [
        Line("files", "size", "↓", (*(Cell(size(row.size_bytes), row.quant or "") for row in rows), *empty), "Cost"),
        Line("bits per weight", "bits", "↓", (*(_number(row.bits_per_weight) for row in rows), *empty), "Cost"),
    ]
    lines += [
        Line(name, unit, better, (*(_timed(row.speed, pick) for row in rows), *empty), "Cost")
        for name, unit, better, pick in _SPEED
    ]
    return columns, [_with_shared_n(line) for line in lines if any(cell.value != "–" for cell in line.cells)]


def _with_shared_n(line: Line) -> Line:
    found = {cell.n for cell in line.cells if cell.value != "–"}
    if len(found) != 1:
        return line
    return replace(line, n=found.pop(), cells=tuple(replace(cell, n="") for cell in line.cells))


_ROUGE: Sequence[tuple[str, Callable[[Task], Interval]]] = (
    ("ROUGE-1", lambda task: task.rouge1),
    ("ROUGE-2", lambda task: task.rouge2),
    ("ROUGE-L", lambda task: task.rougeL),
    ("ROUGE-Lsum", lambda task: task.rougeLsum),
)
_SPEED: Sequence[tuple[str, str, str, Callable[[Speed], Cell]]] = (
    ("first token, median", "ms", "↓", lambda s: Cell(figure(s.first_token_ms), n=f"{s.documents} documents")),
    (
        "further token, median",
        "ms",
        "↓",
        lambda s: Cell(figure(s.per_token_ms), f"95%: {figure(s.per_token_ms_p95)}", f"{s.documents} documents"),
    ),
    (
        "speed",
        "tokens/s",
        "↑",
        lambda s: Cell(f"{s.tokens_per_s:,.0f}", f"{s.threads} threads", f"{s.documents} documents"),
    ),
    ("loading", "s", "↓", lambda s: Cell(figure(s.load_s))),
    ("peak memory", "resident", "↓", lambda s: Cell(size(s.peak_rss_bytes))),
)


def _number(value: float | None) -> Cell:
    return Cell() if value is None else Cell(figure(value))


def _interval(interval: Interval, digits: int) -> Cell:
    return Cell(
        f"{interval.mean:.{digits}f}", f"{interval.low:.{digits}f} – {interval.high:.{digits}f}", _documents(interval.n)
    )


def _documents(n: int) -> str:
    return f"{n:,} documents"


def _share(value: float | None, n: int) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}", n=_documents(n))


def _facts(task: Task) -> Cell:
    if task.facts_right is None:
        return Cell()
    chance = "" if task.facts_right_shuffled is None else f"chance {100 * task.facts_right_shuffled:.1f}"
    return Cell(f"{100 * task.facts_right:.1f}", chance, f"{task.facts:,} facts")


def _timed(speed: Speed | None, pick: Callable[[Speed], Cell]) -> Cell:
    return Cell() if speed is None else pick(speed)


def _distance_lines(rows: Sequence[Row], target: TargetSet, words: str, empty: tuple[Cell, ...]) -> list[Line]:
    found = [_compared(row, target) for row in rows]

    def line(metric: str, unit: str, better: str, cell: Callable[[Distance], Cell]) -> Line:
        cells = tuple(Cell() if pair is None else cell(pair[1]) for pair in found)
        return Line(metric, unit, better, (*cells, *empty), f"Distance from what it was made from, on {words}")

    against = tuple(Cell() if pair is None else Cell(pair[0].reference_label) for pair in found)
    group = f"Distance from what it was made from, on {words}"
    return [
        Line("compared with", "", "", (*against, *empty), group),
        line(
            "KL, mean",
            "nats per token",
            "↓",
            lambda d: Cell(figure(d.kl.mean), _from_to(d.kl.low, d.kl.high), _documents(d.documents)),
        ),
        line("KL, median", "nats", "↓", lambda d: Cell(figure(d.kl_median), n=f"{d.tokens:,} tokens")),
        line(
            "KL, 95% · 99% of tokens below",
            "nats",
            "↓",
            lambda d: Cell(figure(d.kl_p95), figure(d.kl_p99), f"{d.tokens:,} tokens"),
        ),
        line("KL, largest", "nats", "↓", lambda d: Cell(figure(d.kl_max), n=f"{d.tokens:,} tokens")),
        line(
            "same first choice (top-1)",
            "% of tokens",
            "↑",
            lambda d: Cell(
                f"{100 * d.top1.mean:.2f}", f"{100 * d.top1.low:.2f} – {100 * d.top1.high:.2f}", _documents(d.documents)
            ),
        ),
        line(
            "perplexity",
            "its own",
            "↓",
            lambda d: Cell(figure(d.perplexity), f"reference {figure(d.perplexity_reference)}", f"{d.tokens:,} tokens"),
        ),
        line(
            "perplexity ratio",
            "×",
            "↓",
            lambda d: Cell(
                f"{d.perplexity_ratio.mean:.4f}",
                f"{d.perplexity_ratio.low:.4f} – {d.perplexity_ratio.high:.4f}",
                _documents(d.documents),
            ),
        ),
    ]


def _from_to(low: float, high: float) -> str:
    """An interval, its power of ten written once where both ends share it."""
    (left, _, power), (right, _, same) = figure(low).partition("·"), figure(high).partition("·")
    return f"{left} – {right}·{power}" if power and power == same else f"{figure(low)} – {figure(high)}"


def _compared(row: Row, target: TargetSet) -> tuple[Comparison, Distance] | None:
    """The comparison an artifact is known by: with what it was made from, or (base, adapter) with the other one."""
    order = {"merge_fidelity": 0, "quantization": 0, "base_change": 1, "training": 2}
    for comparison in sorted(row.comparisons, key=lambda comparison: order[comparison.purpose]):
        for distance in comparison.distances:
            if distance.target_set == target:
                return comparison, distance
    return None
