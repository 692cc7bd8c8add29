"""The comparison table for the terminal and for metrics.csv, and the verdicts in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from contract.verdict import Verdict
from evalsuite.gate import proven
from evalsuite.results import Comparison, Distance, Results, Row, Task

_MARKS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


def main_comparison(row: Row) -> Comparison | None:
    """The comparison an artifact's distances in the table are from: what it was made from, else what it was held to."""
    order = ("quantization", "merge_fidelity", "training", "base_change")
    return min(row.comparisons, key=lambda comparison: order.index(comparison.purpose), default=None)


def distance_of(comparison: Comparison | None, target_set: str) -> Distance | None:
    """The figures of one target set, where there are any."""
    found = comparison.distances if comparison else ()
    return next((distance for distance in found if distance.target_set == target_set), None)


def text_table(results: Results) -> str:
    """One line per artifact and baseline, aligned; what each column means stands below."""
    header = [
        "artifact",
        "MB",
        "bits",
        "R-1",
        "R-2",
        "R-L",
        "R-Lsum",
        "facts",
        "EOS",
        "against",
        "KL gold",
        "KL greedy",
        "top-1",
        "ppl",
        "first ms",
        "ms/token",
        "peak MB",
    ]
    lines = [header]
    for row in results.rows:
        comparison = main_comparison(row)
        gold, greedy, speed = distance_of(comparison, "gold"), distance_of(comparison, "greedy"), row.speed
        lines.append(
            [
                row.label,
                f"{row.size_bytes / 1e6:.1f}",
                _number(row.bits_per_weight, ".2f"),
                *_task_cells(row.task),
                comparison.reference_label if comparison else "",
                _number(gold.kl.mean if gold else None, ".2g"),
                _number(greedy.kl.mean if greedy else None, ".2g"),
                _number(100 * gold.top1.mean if gold else None, ".1f", "%"),
                _number(gold.perplexity if gold else None, ".3g"),
                _number(speed.first_token_ms if speed else None, ".0f"),
                _number(speed.per_token_ms if speed else None, ".2f"),
                _number(speed.peak_rss_bytes / 1e6 if speed else None, ".0f"),
            ]
        )
    for baseline in results.baselines:
        lines.append([baseline.label, "", "", *_task_cells(baseline.task), *[""] * 8])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in (0, 9) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    data = results.data
    shortened = f", {data.shortened} shortened to fit" if data.shortened else ""
    aligned.insert(1, "-" * max(map(len, aligned)))
    return "\n".join(
        [
            *aligned,
            "",
            f"{data.documents} documents{shortened}. KL: mean nats per token from the model "
            "named under against; top-1 and ppl on the gold summaries.",
        ]
    )


def _task_cells(task: Task) -> list[str]:
    return [
        *(f"{interval.mean:.1f}" for interval in (task.rouge1, task.rouge2, task.rougeL, task.rougeLsum)),
        _number(None if task.facts_right is None else 100 * task.facts_right, ".0f", "%"),
        _number(None if task.eos_rate is None else 100 * task.eos_rate, ".0f", "%"),
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def verdict_lines(verdicts: Sequence[Verdict], require: Sequence[str], *, everything: bool = False) -> list[str]:
    """Each verdict with what spoke against it (with `everything`: all reasons), and what it comes to."""
    lines = []
    for verdict in verdicts:
        lines.append(f"{_MARKS[verdict.outcome]:<13}{verdict.label}")
        lines += [
            f"    {reason.code} ({reason.outcome}): {reason.text}"
            for reason in verdict.reasons
            if everything or reason.outcome != "pass"
        ]
    judged = {verdict.label for verdict in verdicts}
    missing = [label for label in require if label not in judged]
    if missing:
        lines.append(f"required but not judged here: {', '.join(missing)}")
    if require:
        lines.append(f"required: {', '.join(require)}: " + ("proven" if proven(verdicts, require) else "NOT proven"))
    return lines


def csv_table(results: Results, verdicts: Sequence[Verdict]) -> str:
    """One line per artifact and baseline, one column per figure; empty where there is none."""
    outcomes = {verdict.label: verdict.outcome for verdict in verdicts}
    lines: list[dict[str, object]] = []
    for row in results.rows:
        line: dict[str, object] = {
            "label": row.label,
            "kind": row.kind,
            "name": row.name,
            "digest": row.digest,
            "engine": row.engine,
            "quant": row.quant,
            "verdict": outcomes.get(row.label),
            "size_bytes": row.size_bytes,
            "bits_per_weight": row.bits_per_weight,
            **_task_columns(row.task),
        }
        comparison = main_comparison(row)
        if comparison is not None:
            line |= {
                "compared_with": comparison.reference_label,
                "purpose": comparison.purpose,
                "prompt_ids_differ": comparison.prompt_ids_differ,
            }
            for distance in comparison.distances:
                line |= _distance_columns(distance)
        if row.speed is not None:
            line |= {
                "load_s": row.speed.load_s,
                "first_token_ms": row.speed.first_token_ms,
                "per_token_ms": row.speed.per_token_ms,
                "per_token_ms_p95": row.speed.per_token_ms_p95,
                "tokens_per_s": row.speed.tokens_per_s,
                "peak_rss_bytes": row.speed.peak_rss_bytes,
            }
        lines.append(line)
    lines += [
        {"label": baseline.label, "kind": "baseline", **_task_columns(baseline.task)} for baseline in results.baselines
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _task_columns(task: Task) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, interval in (
        ("rouge1", task.rouge1),
        ("rouge2", task.rouge2),
        ("rougeL", task.rougeL),
        ("rougeLsum", task.rougeLsum),
    ):
        columns |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {
        **columns,
        "facts_right": task.facts_right,
        "facts_right_shuffled": task.facts_right_shuffled,
        "eos_rate": task.eos_rate,
        "tokens_mean": task.tokens_mean,
    }


def _distance_columns(distance: Distance) -> dict[str, object]:
    name = distance.target_set
    return {
        f"kl_mean_{name}": distance.kl.mean,
        f"kl_mean_{name}_low": distance.kl.low,
        f"kl_mean_{name}_high": distance.kl.high,
        f"kl_p99_{name}": distance.kl_p99,
        f"kl_max_{name}": distance.kl_max,
        f"top1_{name}": distance.top1.mean,
        f"perplexity_{name}": distance.perplexity,
        f"perplexity_ratio_{name}": distance.perplexity_ratio.mean,
        f"tokens_{name}": distance.tokens,
    }
