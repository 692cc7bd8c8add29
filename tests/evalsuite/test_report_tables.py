"""The report's tables, the terminal's and metrics.csv: the right figure in the right place, and nothing of nothing."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from evalsuite.metrics.buckets import BUCKETS
from evalsuite.report.buckets import buckets_table, faulty_examples, mark
from evalsuite.report.distances import distance_table
from evalsuite.report.scores import scores_table
from evalsuite.report.table import Table, comparison_table
from evalsuite.report.terminal import csv_table, text_table
from evalsuite.results import Prediction
from tests.evalsuite.made_results import LABELS, N, make_results, make_verdicts


def cells(table: Table | None, metric: str, group: str = "") -> dict[str, tuple[str, str]]:
    """Value and note per column of the line of that name."""
    assert table is not None
    [line] = [line for line in table.lines if line.metric == metric and line.group.endswith(group)]
    assert len(line.cells) == len(table.columns)
    return {column.label: (c.value, c.note) for column, c in zip(table.columns, line.cells, strict=True)}


def test_the_main_table() -> None:
    table = comparison_table(make_results())
    assert [column.label for column in table.columns] == [*LABELS, "lead-3", "oracle-extractive"]
    assert cells(table, "ROUGE-L")["q4_k_m"] == ("54.7", "53.2 – 56.2")
    assert cells(table, "ROUGE-L")["oracle-extractive"] == ("38.0", "36.5 – 39.5")
    assert cells(table, "names and numbers right")["base"] == ("8.0", "chance 4.0")
    assert cells(table, "KL, mean", "reference summaries")["f16"] == ("2.2·10⁻⁶", "2.0 – 2.4·10⁻⁶")
    assert cells(table, "same summary")["q4_k_m"] == ("41.7", "39.7 – 43.7")
    assert cells(table, "first token, median")["q8_0"] == ("28", "p95 36.4")
    assert cells(table, "files")["q8_0"] == ("4.3 MB", "q8_0")
    assert all(line.n for line in table.lines if line.group == "Task" and line.metric.startswith("ROUGE"))


def test_further_text_metrics_are_in_their_units() -> None:
    table = scores_table(make_results())
    assert cells(table, "BLEU")["adapter"] == ("28.2", "")
    assert cells(table, "new word pairs")["adapter"] == ("41.0", "39.0 – 43.0")
    assert cells(table, "length")["adapter"] == ("1.04", "1.02 – 1.06")
    assert cells(table, "METEOR, without synonyms")["lead-3"] == ("13.1", "11.7 – 14.5")
    results = make_results()
    bare = tuple(replace(row, task=replace(row.task, scores={}, corpus={})) for row in results.rows)
    assert scores_table(replace(results, rows=bare, baselines=())) is None
    odd = replace(results.rows[0].task, scores={"new_metric": results.rows[0].task.rougeL})
    assert cells(scores_table(replace(results, rows=(replace(results.rows[0], task=odd),))), "new_metric")["base"]


def test_the_whole_distribution_has_a_column_for_every_comparison() -> None:
    table = distance_table(make_results())
    assert table is not None
    assert [(column.label, column.note) for column in table.columns] == [
        ("base", "training, from adapter"),
        ("merged", "change of base, from adapter"),
        ("merged", "merging, from adapter"),
        ("f16", "quantization, from merged"),
        ("q8_0", "quantization, from merged"),
        ("q4_k_m", "quantization, from merged"),
    ]
    group = "reference summaries"
    for metric, value in (
        ("KL, median", "0.0068"),
        ("KL, 90% of tokens below", "0.068"),
        ("KL, 95% of tokens below", "0.136"),
        ("KL, 99% of tokens below", "0.306"),
        ("KL, 99.9% of tokens below", "1.02"),
        ("KL, largest", "2.04"),
        ("RMS Δp", "1"),
    ):
        assert cells(table, metric, group)["q4_k_m"] == (value, "")
    assert cells(table, "same first choice (top-1)", group)["q4_k_m"] == ("95.700", "± 0.1")
    assert cells(table, "log perplexity ratio", group)["q4_k_m"] == ("0.0113", "± 0.0017")
    assert cells(table, "same summary, token for token")["q4_k_m"][0] == "41.7"
    assert cells(table, "first token that differs")["q4_k_m"][0] == "16"
    nothing = tuple(replace(row, comparisons=()) for row in make_results().rows)
    assert distance_table(replace(make_results(), rows=nothing)) is None


def test_empty_buckets_are_left_out() -> None:
    table = buckets_table(make_results())
    assert table is not None
    assert [line.metric for line in table.lines] == ["cut off", "never stopped", "loops", "too long"]
    assert cells(table, "never stopped")["base"] == ("294", "98.0%")
    assert cells(table, "never stopped")["q4_k_m"] == ("1", "0.3%")
    assert cells(table, "loops")["adapter"] == ("0", "")
    clean = tuple(replace(row, task=replace(row.task, buckets={})) for row in make_results().rows)
    assert buckets_table(replace(make_results(), rows=clean)) is None


DOCUMENT = (
    "Mara: Can we meet in room 418 on Monday? Olin: Yes, and bring the old brass key for the door with you, please."
)
REFERENCE = "Mara asks Olin to meet in room 418."


def fallen(text: str, *buckets: str, name: str = "a") -> Prediction:
    return Prediction(name, DOCUMENT, (REFERENCE,), text, "eos", 9, {"rougeL": 10.0}, buckets)


@pytest.mark.parametrize(
    ("bucket", "text", "marked"),
    [
        ("invented_number", "They meet in room 527, not 418.", ["527"]),
        ("invented_number", "Room 4180 and 27 are new, 418 is not.", ["4180", "27"]),
        ("invented_name", "Mara asks Kesto to meet in room 418.", ["Kesto"]),
        ("loops", "She asks him to meet, she asks him to meet. Done.", ["she asks him to meet."]),
        ("copies", "Yes, and bring the old brass key for the door with you. Hm.", [
            "Yes, and bring the old brass key for the door with you."
        ]),
        ("too_long", " ".join(f"w{i}" for i in range(18)), ["w16 w17"]),
        ("cut_off", "Mara asks Olin to meet in the", ["the"]),
        ("never_stopped", "Mara asks Olin to meet in the", ["the"]),
        ("too_short", "Room.", []),
        ("wrong_language", "Sie treffen sich.", []),
    ],
)  # fmt: skip
def test_the_words_at_fault_are_marked(bucket: str, text: str, marked: list[str]) -> None:
    prediction = fallen(text, bucket)
    spans = mark(bucket, prediction, [prediction])
    assert [span.text for span in spans if span.kind == "added"] == marked
    assert "".join(span.text for span in spans) == text


def test_every_bucket_has_an_example_from_an_artifact_before_the_base() -> None:
    predictions = {
        "base": [fallen("", "empty"), fallen("x x x x x", "loops")],
        "q8_0": [fallen("one", "too_short", "loops", name="b"), fallen("two", "loops", name="c"), fallen("three")],
    }
    found = {faulty.bucket: (faulty.label, faulty.id, faulty.others) for faulty in faulty_examples(predictions)}
    assert found == {"empty": ("base", "a", 0), "loops": ("q8_0", "c", 1), "too_short": ("q8_0", "b", 0)}
    assert list(found) == [bucket for bucket in BUCKETS if bucket in found]
    assert faulty_examples({}) == []


def test_the_terminal_table_fits_a_terminal_and_has_every_row() -> None:
    text = text_table(make_results())
    assert max(map(len, text.splitlines())) <= 150
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert {*LABELS, "lead-3", "oracle-extractive"} <= set(lines)
    assert " ".join(lines["q4_k_m"][1:]) == (
        "3.1 4.90 60.7 32.8 54.7 55.1 57.9 82% 100% merged 0.034 0.027 95.70% 2.48 42% 24 1.92 54"
    )
    assert f"{N} documents" in text


def test_the_csv_has_a_figure_for_every_row() -> None:
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(csv_table(make_results(), make_verdicts())))}
    assert list(rows) == [*LABELS, "lead-3", "oracle-extractive"]
    quant, lead = rows["q4_k_m"], rows["lead-3"]
    assert (quant["verdict"], quant["compared_with"], quant["documents"]) == ("pass", "merged", str(N))
    assert float(quant["kl_mean_gold"]) == 0.034
    assert float(quant["kl_mean_gold_high"]) == pytest.approx(0.0374)
    assert float(quant["kl_p999_greedy"]) == pytest.approx(0.034 * 0.8 * 30)
    assert float(quant["bertscore_f1_low"]) == pytest.approx(60 + 54.7 / 2 - 0.7)
    assert (quant["bucket_loops"], quant["bucket_empty"], lead["bucket_loops"]) == ("3", "0", "")
    assert (quant["speed_documents"], lead["speed_documents"], lead["compared_with"]) == ("20", "", "")
    assert lead["kind"] == "baseline"


def test_the_csv_says_what_a_merge_is_compared_with() -> None:
    good = make_results()
    turned = replace(good.rows[2], comparisons=good.rows[2].comparisons[::-1])
    for rows in (good.rows, (*good.rows[:2], turned, *good.rows[3:])):
        [row] = [
            row
            for row in csv.DictReader(io.StringIO(csv_table(replace(good, rows=rows), [])))
            if row["label"] == "merged"
        ]
        assert row["purpose"] == "merge_fidelity"
        assert float(row["kl_mean_gold"]) == 8.8e-7
