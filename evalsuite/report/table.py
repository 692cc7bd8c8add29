"""The report's comparison table: a line per metric, a column per artifact, every figure with its n and interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evalsuite.report.words import figure, size
from evalsuite.results import Comparison, Distance, Interval, Results, Row, Speed, TargetSet, Task, Unloadable

TARGET_WORDS: dict[TargetSet, str] = {"gold": "reference summaries", "greedy": "greedy summaries"}


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


@dataclass(frozen=True)
class Column:
    """What a column is about, and in small what it is held against."""

    label: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and lines; a line has a cell for every column."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, columns: Sequence[Column], lines: Sequence[Line]) -> Table:
        """Without the lines that have no figure at all, and with n in a line's name where all its cells share it."""
        kept = [_with_shared_n(line) for line in lines if any(cell.value != "–" for cell in line.cells)]
        return cls(tuple(columns), tuple(kept))


def _with_shared_n(line: Line) -> Line:
    found = {cell.n for cell in line.cells if cell.value != "–"}
    if len(found) != 1:
        return line
    return replace(line, n=found.pop(), cells=tuple(replace(cell, n="") for cell in line.cells))


def comparison_table(results: Results) -> Table:
    """The main table: task, distance from what each was made from, cost; artifacts, then baselines."""
    rows, tasks = results.rows, tasks_of(results)
    empty = (Cell(),) * len(results.baselines)
    lines = [
        Line(name, "0-100", "↑", tuple(interval_cell(pick(task), 1) for task in tasks), "Task") for name, pick in _ROUGE
    ]
    lines += [
        Line("names and numbers right", "%", "↑", tuple(map(_facts, tasks)), "Task"),
        Line("end by themselves", "%", "↑", tuple(_share(task.eos_rate, task.rougeL.n) for task in tasks), "Task"),
        Line("length", "tokens", "", tuple(_number(task.tokens_mean) for task in tasks), "Task"),
    ]
    for target in TARGET_WORDS:
        lines += _distance_lines(rows, target, empty)
    lines += [
        Line("files", "size", "↓", (*(_files(row) for row in rows), *empty), "Cost"),
        Line("bits per weight", "", "↓", (*(_number(row.bits_per_weight) for row in rows), *empty), "Cost"),
    ]
    lines += [
        Line(name, unit, better, (*(_timed(row.speed, pick) for row in rows), *empty), "Cost")
        for name, unit, better, pick in _SPEED
    ]
    return Table.of(
        [*columns_of(results), *(Column(each.label, "could not be loaded") for each in results.unloadable)],
        [_with_unloadable(line, results.unloadable) for line in lines],
    )


def _with_unloadable(line: Line, unloadable: Sequence[Unloadable]) -> Line:
    cells = [Cell(size(each.size_bytes), each.quant or "") if line.metric == "files" else Cell() for each in unloadable]
    return replace(line, cells=(*line.cells, *cells))


def columns_of(results: Results) -> list[Column]:
    """Artifacts, then baselines."""
    return [Column(row.label) for row in results.rows] + [Column(each.label) for each in results.baselines]


def tasks_of(results: Results) -> list[Task]:
    """In the order of `columns_of`."""
    return [row.task for row in results.rows] + [each.task for each in results.baselines]


_ROUGE: Sequence[tuple[str, Callable[[Task], Interval]]] = (
    ("ROUGE-1", lambda task: task.rouge1),
    ("ROUGE-2", lambda task: task.rouge2),
    ("ROUGE-L", lambda task: task.rougeL),
    ("ROUGE-Lsum", lambda task: task.rougeLsum),
)


def _with_p95(median: float, p95: float, speed: Speed) -> Cell:
    return Cell(figure(median), f"p95 {figure(p95)}", documents(speed.documents))


_SPEED: Sequence[tuple[str, str, str, Callable[[Speed], Cell]]] = (
    ("first token, median", "ms", "↓", lambda s: _with_p95(s.first_token_ms, s.first_token_ms_p95, s)),
    ("further token, median", "ms", "↓", lambda s: _with_p95(s.per_token_ms, s.per_token_ms_p95, s)),
    (
        "speed",
        "tokens/s",
        "↑",
        lambda s: Cell(f"{s.tokens_per_s:,.0f}", f"{s.threads} threads", documents(s.documents)),
    ),
    (
        "summaries",
        "per second, one at a time",
        "↑",
        lambda s: Cell(figure(s.documents_per_s), f"{s.output_tokens} tokens each", documents(s.documents)),
    ),
    ("loading", "s", "↓", lambda s: Cell(figure(s.load_s))),
    ("peak memory", "resident", "↓", lambda s: Cell(size(s.peak_rss_bytes))),
)


def _files(row: Row) -> Cell:
    return Cell(size(row.size_bytes), row.quant or "") if row.size_bytes else Cell()


def _number(value: float | None) -> Cell:
    return Cell() if value is None else Cell(figure(value))


def interval_cell(interval: Interval, digits: int, scale: float = 1.0) -> Cell:
    """A mean with its interval, times `scale`."""
    mean, low, high = (f"{scale * value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return Cell(mean, f"{low} – {high}", documents(interval.n))


def documents(n: int) -> str:
    """What a figure was measured on."""
    return f"{n:,} documents"


def tokens(n: int) -> str:
    """What a figure was measured on."""
    return f"{n:,} tokens"


def _share(value: float | None, n: int) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}", n=documents(n))


def _facts(task: Task) -> Cell:
    if task.facts_right is None:
        return Cell()
    chance = "" if task.facts_right_shuffled is None else f"chance {100 * task.facts_right_shuffled:.1f}"
    return Cell(f"{100 * task.facts_right:.1f}", chance, f"{task.facts:,} facts")


def _timed(speed: Speed | None, pick: Callable[[Speed], Cell]) -> Cell:
    return Cell() if speed is None else pick(speed)


def kl_cell(distance: Distance) -> Cell:
    """Mean KL with its interval."""
    kl = distance.kl
    return Cell(figure(kl.mean), from_to(kl.low, kl.high), documents(distance.documents))


def perplexity_ratio_cell(distance: Distance) -> Cell:
    """How many times the reference's perplexity, with its interval."""
    ratio = distance.perplexity_ratio
    if ratio.mean >= 10:
        return Cell(figure(ratio.mean), from_to(ratio.low, ratio.high), documents(distance.documents))
    return interval_cell(ratio, 4)


def _distance_lines(rows: Sequence[Row], target: TargetSet, empty: tuple[Cell, ...]) -> list[Line]:
    found = [_compared(row, target) for row in rows]
    group = f"Distance from what it was made from, on {TARGET_WORDS[target]}"

    def line(metric: str, unit: str, better: str, cell: Callable[[Comparison, Distance], Cell]) -> Line:
        return Line(metric, unit, better, (*(Cell() if p is None else cell(*p) for p in found), *empty), group)

    lines = [
        line("compared with", "", "", lambda c, _: Cell(c.reference_label)),
        line("KL, mean", "nats per token", "↓", lambda _, d: kl_cell(d)),
        line("same first choice (top-1)", "% of tokens", "↑", lambda _, d: interval_cell(d.top1, 2, 100)),
    ]
    if target == "greedy":
        return [
            *lines,
            line(
                "same summary",
                "%, to the last token",
                "↑",
                lambda c, _: Cell() if c.same_ids is None else interval_cell(c.same_ids, 1, 100),
            ),
        ]
    return [
        *lines,
        line(
            "perplexity",
            "its own",
            "↓",
            lambda _, d: Cell(figure(d.perplexity), f"reference {figure(d.perplexity_reference)}", tokens(d.tokens)),
        ),
        line("perplexity ratio", "×", "↓", lambda _, d: perplexity_ratio_cell(d)),
    ]


def from_to(low: float, high: float) -> str:
    """An interval, its power of ten written once where both ends share it."""
    (left, _, power), (right, _, same) = figure(low).partition("·"), figure(high).partition("·")
    return f"{left} – {right}·{power}" if power and power == same else f"{figure(low)} – {figure(high)}"


def _compared(row: Row, target: TargetSet) -> tuple[Comparison, Distance] | None:
    """The comparison an artifact is known by: with what it was made from, or (base, adapter) with the other one."""
    order = {"merge_fidelity": 0, "quantization": 0, "base_change": 1, "training": 2, "serving": 3}
    for comparison in sorted(row.comparisons, key=lambda comparison: order[comparison.purpose]):
        for distance in comparison.distances:
            if distance.target_set == target:
                return comparison, distance
    return None
