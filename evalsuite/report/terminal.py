"""The comparison table for the terminal and for metrics.csv, and the verdicts in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from contract.verdict import Verdict, missing, proven
from evalsuite.metrics.buckets import BUCKETS
from evalsuite.report.words import data_warnings, documents_of
from evalsuite.results import Comparison, Distance, Interval, Results, Row, ServedPath, Task

# what metrics.csv takes of a distance; the rest is made of many figures and stays in metrics.json
_DISTANCE_FIELDS = tuple(
    field.name
    for field in fields(Distance)
    if field.name not in ("target_set", "kl_histogram", "kl_by_document", "kl_by_position", "count_by_position")
)
_MARKS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


def main_comparison(row: Row) -> Comparison | None:
    """The comparison an artifact's distances in the table are from: what it was made from, else what it was held to."""
    order = ("quantization", "merge_fidelity", "training", "base_change", "serving")
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
        "chrF",
        "facts",
        "EOS",
        "against",
        "KL gold",
        "KL greedy",
        "top-1",
        "ppl",
        "same",
        "1st ms",
        "ms/tok",
        "peak MB",
    ]
    lines = [header]
    for row in results.rows:
        comparison = main_comparison(row)
        gold, greedy, speed = distance_of(comparison, "gold"), distance_of(comparison, "greedy"), row.speed
        lines.append(
            [
                row.label,
                f"{row.size_bytes / 1e6:.1f}" if row.size_bytes else "",
                _number(row.bits_per_weight, ".2f"),
                *_task_cells(row.task),
                comparison.reference_label if comparison else "",
                _number(gold.kl.mean if gold else None, ".2g"),
                _number(greedy.kl.mean if greedy else None, ".2g"),
                _number(100 * gold.top1.mean if gold else None, ".2f", "%"),
                _number(gold.perplexity if gold else None, ".3g"),
                _number(100 * comparison.same_ids.mean if comparison and comparison.same_ids else None, ".0f", "%"),
                _number(speed.first_token_ms if speed else None, ".0f"),
                _number(speed.per_token_ms if speed else None, ".2f"),
                _number(speed.peak_rss_bytes / 1e6 if speed else None, ".0f"),
            ]
        )
    for each in results.unloadable:
        lines.append([each.label, f"{each.size_bytes / 1e6:.1f}", *[""] * 8, "not loadable", *[""] * 8])
    for baseline in results.baselines:
        lines.append([baseline.label, "", "", *_task_cells(baseline.task), *[""] * 9])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = [
        "  ".join(
            cell.ljust(width) if header[column] in ("artifact", "against") else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    data = results.data
    left_out = f", {len(data.too_long)} more too long to be served and not judged" if data.too_long else ""
    aligned.insert(1, "-" * max(map(len, aligned)))
    return "\n".join(
        [
            *aligned,
            "",
            f"{documents_of(data)}{left_out}. KL: mean nats per token from the model "
            "named under against; top-1 and ppl on the gold summaries;",
            "same: summaries equal to that model's, token for token. Median times: first token, each further token.",
            *(f"{row.label}: {row.stored}" for row in results.rows if row.stored),
            *data_warnings(data),
        ]
    )


def _task_cells(task: Task) -> list[str]:
    return [
        *(f"{interval.mean:.1f}" for interval in (task.rouge1, task.rouge2, task.rougeL, task.rougeLsum)),
        _number(task.corpus.get("chrf"), ".1f"),
        _number(None if task.facts_right is None else 100 * task.facts_right, ".0f", "%"),
        _number(None if task.eos_rate is None else 100 * task.eos_rate, ".0f", "%"),
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def verdict_lines(
    verdicts: Sequence[Verdict],
    require: Sequence[str],
    *,
    everything: bool = False,
    against: Sequence[str] = (),
    is_proven: bool | None = None,
) -> list[str]:
    """Each verdict with what spoke against it, and what it comes to.

    Args:
        verdicts: of one evaluation.
        require: the labels that must pass.
        everything: name all reasons, not only those against it.
        against: what earlier evaluations say against what passes here, a line each.
        is_proven: what it comes to with those; None: what these verdicts come to by themselves.
    """
    lines = []
    for verdict in verdicts:
        lines.append(f"{_MARKS[verdict.outcome]:<13}{verdict.label}")
        lines += [
            f"    {reason.code} ({reason.outcome}): {reason.text}"
            for reason in verdict.reasons
            if everything or reason.outcome != "pass"
        ]
    lines += [f"{'EARLIER':<13}{line}" for line in against]
    if lacking := missing(verdicts, require):
        lines.append(f"required but not judged here: {', '.join(lacking)}")
    said = "proven" if (proven(verdicts, require) if is_proven is None else is_proven) else "NOT proven"
    lines.append(f"required: {', '.join(require) or 'nothing, and nothing was judged'}: {said}")
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
            "size_bytes": row.size_bytes or None,
            "bits_per_weight": row.bits_per_weight,
            **_task_columns(row.task),
            **{f"bucket_{bucket}": row.task.buckets.get(bucket, 0) for bucket in BUCKETS},
        }
        comparison = main_comparison(row)
        if comparison is not None:
            line |= _comparison_columns(comparison)
        if row.speed is not None:
            speed = asdict(row.speed)
            line |= {"speed_documents": speed.pop("documents"), **speed}
        lines.append(line)
    named = ("label", "kind", "name", "digest", "quant", "size_bytes")
    for each in results.unloadable:
        lines.append({name: getattr(each, name) for name in named} | {"verdict": outcomes.get(each.label)})
    lines += [
        {"label": baseline.label, "kind": "baseline", **_task_columns(baseline.task)} for baseline in results.baselines
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _interval_columns(name: str, interval: Interval | None) -> dict[str, object]:
    return {} if interval is None else {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _task_columns(task: Task) -> dict[str, object]:
    columns: dict[str, object] = {"documents": task.rougeL.n}
    for name, interval in (
        ("rouge1", task.rouge1),
        ("rouge2", task.rouge2),
        ("rougeL", task.rougeL),
        ("rougeLsum", task.rougeLsum),
        *task.scores.items(),
    ):
        columns |= _interval_columns(name, interval)
    return {
        **columns,
        **task.corpus,
        "facts_right": task.facts_right,
        "facts_right_shuffled": task.facts_right_shuffled,
        "facts": task.facts,
        "eos_rate": task.eos_rate,
        "tokens_mean": task.tokens_mean,
    }


def _comparison_columns(comparison: Comparison) -> dict[str, object]:
    columns: dict[str, object] = {
        "compared_with": comparison.reference_label,
        "purpose": comparison.purpose,
        "prompt_ids_differ": comparison.prompt_ids_differ,
        "same_text": comparison.same_text,
        **_interval_columns("same_ids", comparison.same_ids),
        **_interval_columns("rouge_l_difference", comparison.rouge_l_difference),
        **_interval_columns("eos_rate_difference", comparison.eos_rate_difference),
    }
    for distance in comparison.distances:
        columns |= _distance_columns(distance)
    if comparison.served_path is not None:
        columns |= _served_columns(comparison.served_path)
    return columns


def _served_columns(path: ServedPath) -> dict[str, object]:
    columns: dict[str, object] = {"path_documents": path.documents, "path_texts_differ": path.texts_differ}
    for noise in path.noise:
        columns |= {
            f"path_kl_{noise.target_set}": noise.kl,
            f"path_logit_difference_{noise.target_set}": noise.logit_difference,
        }
    for distance in path.distances:
        columns |= _interval_columns(f"served_kl_mean_{distance.target_set}", distance.kl)
        columns |= _interval_columns(f"served_top1_{distance.target_set}", distance.top1)
    return columns


def _distance_columns(distance: Distance) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name in _DISTANCE_FIELDS:
        value = getattr(distance, name)
        column = f"{'kl_mean' if name == 'kl' else name}_{distance.target_set}"
        columns |= _interval_columns(column, value) if isinstance(value, Interval) else {column: value}
    return columns
