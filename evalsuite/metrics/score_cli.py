"""The command `assay score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contract.threads import threads_option

if TYPE_CHECKING:
    from evalsuite.metrics.bertscore import BertScorer


@click.command("score")
@click.option("--predictions", required=True, type=click.Path(path_type=Path), help='JSON Lines: {"id", "prediction"}.')
@click.option(
    "--references", required=True, help='JSON Lines: {"id", "document", "summary"}, or "references": [...]; same ids.'
)
@click.option("--no-stemming", is_flag=True, help="ROUGE without Porter's stemmer.")
@click.option(
    "--bertscore",
    metavar="ENCODER_DIR|none",
    help="Encoder for BERTScore; default: the one of the bertscore extra, where it is installed.",
)
@click.option("--layer", type=click.IntRange(min=1), help="The encoder's layer; required with ENCODER_DIR.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write a line per summary to this file.")
@threads_option("CPU threads of BERTScore.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def score_command(
    predictions: Path,
    references: str,
    no_stemming: bool,
    bertscore: str | None,
    layer: int | None,
    csv_path: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Score summaries that are already written, by every text metric, beside lead-3 and an extractive oracle."""
    from evalsuite.metrics.score_report import make_report, report_csv, report_object, report_text
    from evalsuite.metrics.score_rows import read_score_rows

    rows = read_score_rows(predictions, references)
    bert, left_out = _scorer(bertscore, layer, threads)
    report = make_report(rows, stemming=not no_stemming, bert=bert, left_out=left_out)
    if csv_path:
        csv_path.write_text(report_csv(report), encoding="utf-8", newline="")
    click.echo(json.dumps(report_object(report), ensure_ascii=False) if as_json else report_text(report))


def _scorer(bertscore: str | None, layer: int | None, threads: int) -> tuple[BertScorer | None, dict[str, str]]:
    """The encoder that was asked for, or none and why."""
    from evalsuite.metrics.bertscore import BertScorer, bertscore_available

    if bertscore == "none":
        if layer is not None:
            raise click.UsageError("--layer is the encoder's, and --bertscore none asks for no encoder")
        return None, {"bertscore": "--bertscore none"}
    if bertscore is None and not bertscore_available():
        return None, {"bertscore": "the bertscore extra is not installed and --bertscore names no encoder"}
    click.echo("assay score · BERTScore takes the longest (--bertscore none leaves it out) …", err=True)
    return BertScorer(Path(bertscore) if bertscore else None, layer, threads), {}
