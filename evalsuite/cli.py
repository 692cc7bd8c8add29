"""The commands `assay eval` and `assay gate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path)


@click.command("eval")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT...")
@click.option("--data", required=True, metavar="EXAMPLES", help="Test examples: a file, or hf:OWNER/NAME@SPLIT.")
@click.option("--out", required=True, type=_FOLDER, help="Evaluation folder; an earlier evaluation is replaced.")
@click.option("--reference", type=_FOLDER, help="What artifacts of unknown origin are compared with.")
@click.option("--base", type=_FOLDER, help="The model before fine-tuning, to show whether training helped.")
@click.option("--recipe", type=_FOLDER, help="Its prompt, limits and columns; default: what the artifacts recorded.")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N examples only.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def eval_command(
    context: click.Context,
    artifacts: tuple[Path, ...],
    data: str,
    out: Path,
    reference: Path | None,
    base: Path | None,
    recipe: Path | None,
    limit: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Score ARTIFACTs against each other and against what they were made from; exit 1 unless all required ones pass."""
    from contract.artifact import open_artifact
    from contract.example import read_examples
    from contract.recipe import load_recipe
    from contract.verdict import VERDICT_FILE, read_verdicts
    from evalsuite.evaluate import evaluate
    from evalsuite.gate import proven
    from evalsuite.results import REPORT_FILE
    from evalsuite.table import text_table, verdict_lines

    settings = load_recipe(recipe) if recipe else None
    examples = read_examples(data, settings.data.columns.columns() if settings else None, limit=limit)
    results = evaluate(
        [open_artifact(path) for path in artifacts],
        examples,
        out,
        reference=open_artifact(reference) if reference else None,
        base=open_artifact(base) if base else None,
        recipe=settings,
        threads=threads,
    )
    verdicts = read_verdicts(out / VERDICT_FILE)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "results": asdict(results),
                    "verdicts": [asdict(v) for v in verdicts],
                    "proven": proven(verdicts, results.require),
                }
            )
        )
    else:
        click.echo(
            "\n".join(
                [text_table(results), "", *verdict_lines(verdicts, results.require), "", f"report: {out / REPORT_FILE}"]
            )
        )
    context.exit(0 if proven(verdicts, results.require) else 1)


@click.command("gate")
@click.argument("folder", type=_FOLDER, metavar="EVAL_DIR")
@click.option("--recipe", type=_FOLDER, help="Limits to judge by; default: those of the evaluation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def gate_command(context: click.Context, folder: Path, recipe: Path | None, as_json: bool) -> None:
    """Judge the figures of an evaluation again; exit 1 unless all required artifacts pass."""
    from contract.recipe import GatePart, load_recipe
    from evalsuite.folder import refuse_changed
    from evalsuite.gate import judge, proven
    from evalsuite.results import read_results
    from evalsuite.table import verdict_lines

    results = read_results(folder)
    refuse_changed(results)
    gate = load_recipe(recipe).gate if recipe else GatePart.model_validate(results.limits)
    require = gate.require if recipe else results.require
    verdicts = judge(results, gate)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "verdicts": [asdict(verdict) for verdict in verdicts],
                    "require": list(require),
                    "proven": proven(verdicts, require),
                }
            )
        )
    else:
        click.echo("\n".join(verdict_lines(verdicts, require, everything=True)))
    context.exit(0 if proven(verdicts, require) else 1)
