"""The report's table of distances: a column per comparison, the whole distribution and where greedy answers part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from evalsuite.report.table import (
    TARGET_WORDS,
    Cell,
    Column,
    Line,
    Table,
    documents,
    interval_cell,
    kl_cell,
    perplexity_ratio_cell,
    tokens,
)
from evalsuite.report.words import figure
from evalsuite.results import Comparison, Distance, PathNoise, Purpose, Results, ServedPath, TargetSet

PURPOSE_WORDS: dict[Purpose, str] = {
    "training": "training",
    "merge_fidelity": "merging",
    "base_change": "change of base",
    "quantization": "quantization",
    "serving": "serving",
}
_PERCENTILES: Sequence[tuple[str, str, Callable[[Distance], float]]] = (
    ("KL, median", "nats", lambda d: d.kl_median),
    ("KL, 90% of tokens below", "nats", lambda d: d.kl_p90),
    ("KL, 95% of tokens below", "nats", lambda d: d.kl_p95),
    ("KL, 99% of tokens below", "nats", lambda d: d.kl_p99),
    ("KL, 99.9% of tokens below", "nats", lambda d: d.kl_p999),
    ("KL, largest", "nats", lambda d: d.kl_max),
)


def distance_table(results: Results) -> Table | None:
    """None where nothing was compared token by token."""
    found = [(row, c) for row in results.rows for c in row.comparisons if c.distances or c.same_ids is not None]
    if not found:
        return None
    columns = [Column(row.label, f"{PURPOSE_WORDS[c.purpose]}, from {c.reference_label}") for row, c in found]
    comparisons = [comparison for _, comparison in found]
    lines = [line for target in TARGET_WORDS for line in _distribution(comparisons, target)]
    return Table.of(columns, [*lines, *_as_served(comparisons), *_generated(comparisons, results.data.documents)])


def _distribution(comparisons: Sequence[Comparison], target: TargetSet) -> list[Line]:
    found = [next((d for d in c.distances if d.target_set == target), None) for c in comparisons]
    group = f"Token by token, on {TARGET_WORDS[target]}"

    def line(metric: str, unit: str, better: str, cell: Callable[[Distance], Cell]) -> Line:
        return Line(metric, unit, better, tuple(Cell() if d is None else cell(d) for d in found), group)

    def percentile(pick: Callable[[Distance], float]) -> Callable[[Distance], Cell]:
        return lambda d: Cell(figure(pick(d)), n=tokens(d.tokens))

    return [
        line("KL, mean", "nats per token", "↓", kl_cell),
        *(line(name, unit, "↓", percentile(pick)) for name, unit, pick in _PERCENTILES),
        line("RMS Δp", "% of probability", "↓", lambda d: Cell(figure(100 * d.delta_p_rms), n=tokens(d.tokens))),
        line(
            "same first choice (top-1)",
            "% of tokens, ± SE",
            "↑",
            lambda d: Cell(f"{100 * d.top1.mean:.3f}", f"± {figure(100 * d.top1_se)}", tokens(d.tokens)),
        ),
        line(
            "log perplexity ratio",
            "nats per token, ± SE",
            "↓",
            lambda d: Cell(figure(d.log_perplexity_ratio), f"± {figure(d.log_perplexity_ratio_se)}", tokens(d.tokens)),
        ),
        line("perplexity ratio", "×", "↓", perplexity_ratio_cell),
    ]


def _as_served(comparisons: Sequence[Comparison]) -> list[Line]:
    """What serving differs by: nothing where no artifact can be served."""
    paths = [comparison.served_path for comparison in comparisons]
    if not any(path is not None and path.noise for path in paths):
        return []

    def line(metric: str, unit: str, better: str, cell: Callable[[ServedPath], Cell]) -> Line:
        cells = tuple(Cell() if path is None or not path.noise else cell(path) for path in paths)
        return Line(metric, unit, better, cells, "As it is served, one text at a time, beside many at once")

    def of(target: TargetSet, pick: Callable[[PathNoise], float]) -> Callable[[ServedPath], Cell]:
        def cell(path: ServedPath) -> Cell:
            found = [noise for noise in path.noise if noise.target_set == target]
            return Cell(figure(pick(found[0])), n=documents(path.documents)) if found else Cell()

        return cell

    def whole(target: TargetSet) -> Callable[[ServedPath], Cell]:
        return lambda path: next((kl_cell(d) for d in path.distances if d.target_set == target), Cell())

    return [
        *(line(f"KL, mean, {words}", "nats per token", "↓", whole(target)) for target, words in TARGET_WORDS.items()),
        *(
            line(f"KL between the two ways, {words}", "nats per token", "↓", of(target, lambda noise: noise.kl))
            for target, words in TARGET_WORDS.items()
        ),
        *(
            line(f"largest difference, {words}", "logit", "↓", of(target, lambda noise: noise.logit_difference))
            for target, words in TARGET_WORDS.items()
        ),
        line(
            "summaries that differ",
            "",
            "↓",
            lambda path: (
                Cell() if path.texts_differ is None else Cell(str(path.texts_differ), n=documents(path.documents))
            ),
        ),
    ]


def _generated(comparisons: Sequence[Comparison], n: int) -> list[Line]:
    def line(metric: str, unit: str, better: str, cell: Callable[[Comparison], Cell]) -> Line:
        return Line(metric, unit, better, tuple(map(cell, comparisons)), "What each wrote by itself")

    return [
        line("same summary, token for token", "%", "↑", _share),
        line(
            "same summary, character for character",
            "%",
            "↑",
            lambda c: Cell() if c.same_text is None else Cell(f"{100 * c.same_text:.1f}", n=documents(n)),
        ),
        line("first token that differs", "median, of those that differ", "↑", _first_divergence),
    ]


def _share(comparison: Comparison) -> Cell:
    return Cell() if comparison.same_ids is None else interval_cell(comparison.same_ids, 1, 100)


def _first_divergence(comparison: Comparison) -> Cell:
    differ = [position + 1 for position in comparison.first_divergence if position >= 0]
    return Cell(figure(median(differ)), n=documents(len(differ))) if differ else Cell()
