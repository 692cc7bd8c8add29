"""The commands `assay eval` and `assay gate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contract.threads import threads_option

if TYPE_CHECKING:
    from evalsuite.served.endpoint import Endpoint

_FOLDER = click.Path(path_type=Path)


@click.command("eval")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT|URL...")
@click.option("--data", required=True, metavar="EXAMPLES", help="Test examples: a file, or hf:OWNER/NAME@SPLIT.")
@click.option("--out", required=True, type=_FOLDER, help="Evaluation folder; an earlier evaluation is replaced.")
@click.option("--reference", type=_FOLDER, help="What artifacts of unknown origin are compared with.")
@click.option("--base", type=_FOLDER, help="The model before fine-tuning, to show whether training helped.")
@click.option("--recipe", type=_FOLDER, help="Its prompt, limits and columns; default: what the artifacts recorded.")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N documents only.")
@threads_option()
@click.option("--endpoint-model", metavar="NAME", help="Which model of the URL; default: the only one it has.")
@click.option("--api-key-file", type=_FOLDER, help="Send the URL the key in this file.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests to the URL at a time; default: 1.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def eval_command(
    context: click.Context,
    artifacts: tuple[str, ...],
    data: str,
    out: Path,
    reference: Path | None,
    base: Path | None,
    recipe: Path | None,
    limit: int | None,
    threads: int,
    endpoint_model: str | None,
    api_key_file: Path | None,
    concurrency: int | None,
    as_json: bool,
) -> None:
    """Score ARTIFACTs against each other and against what they were made from; exit 1 unless all required ones pass.

    A URL (http://host:port) is an OpenAI-compatible server; its answers are held against the ARTIFACT it claims to be.
    """
    from contract.artifact import open_artifact
    from contract.example import read_examples
    from contract.history import last_evaluation
    from contract.recipe import load_recipe
    from contract.strictness import wider_limits
    from evalsuite.evaluate import evaluate
    from evalsuite.kept import Kept, is_proven, standing_lines
    from evalsuite.report.terminal import text_table, verdict_lines
    from evalsuite.results import REPORT_FILE
    from evalsuite.served.endpoint import is_url

    settings = load_recipe(recipe) if recipe else None
    paths = [name for name in artifacts if not is_url(name)] or [str(path) for path in (reference,) if path]
    endpoint = _endpoint(artifacts, bool(paths), endpoint_model, api_key_file, concurrency)
    examples = read_examples(data, settings.data.columns.columns() if settings else None, limit=limit)
    results = evaluate(
        [open_artifact(path) for path in paths],
        examples,
        out,
        reference=open_artifact(reference) if reference else None,
        base=open_artifact(base) if base else None,
        recipe=settings,
        threads=threads,
        endpoint=endpoint,
    )
    evaluation = last_evaluation(out)
    standings = Kept.of(out, results).standings(evaluation)
    proven = is_proven(evaluation, standings, results.require)
    against = standing_lines(evaluation, standings)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "results": asdict(results),
                    "verdicts": [asdict(v) for v in evaluation.verdicts],
                    "standing": {label: counts.state for label, counts in standings.items()},
                    "proven": proven,
                }
            )
        )
    else:
        told = verdict_lines(evaluation.verdicts, results.require, against=against, is_proven=proven)
        lines = [text_table(results), "", *wider_limits(evaluation.basis.limits), *told]
        click.echo("\n".join([*lines, "", f"report: {out / REPORT_FILE}"]))
    context.exit(0 if proven else 1)


def _endpoint(
    names: Sequence[str], with_artifact: bool, model: str | None, api_key_file: Path | None, concurrency: int | None
) -> Endpoint | None:
    """The one URL among the names, connected to."""
    from contract.api_key import read_api_key
    from contract.errors import AssayError
    from evalsuite.served.endpoint import connect, is_url

    urls = [name for name in names if is_url(name)]
    if len(urls) > 1:
        raise AssayError("one endpoint at a time", got=", ".join(urls), hint="an evaluation folder for each")
    if not urls:
        if model is not None or api_key_file is not None or concurrency is not None:
            raise AssayError("--endpoint-model, --api-key-file and --concurrency are for a URL, and there is none")
        return None
    if not with_artifact:
        raise AssayError(
            "an endpoint is held against the local artifact it claims to be, and there is none",
            where=urls[0],
            hint="assay eval URL ARTIFACT …, where ARTIFACT is the file or folder that is served",
        )
    key = read_api_key(api_key_file) if api_key_file else None
    return connect(urls[0], model=model, api_key=key, concurrency=concurrency or 1)


@click.command("gate")
@click.argument("folder", type=_FOLDER, metavar="EVAL_DIR")
@click.option("--recipe", type=_FOLDER, help="Limits to judge by; default: those of the evaluation.")
@click.option("--sign", metavar="KEY", type=_FOLDER, help="If all required pass: sign what passed (ed25519, PEM).")
@click.option("--junit", metavar="FILE", type=_FOLDER, help="Write JUnit XML for CI, whatever the gate says.")
@click.option("--markdown", metavar="FILE", type=_FOLDER, help="Write Markdown for a summary page of CI.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def gate_command(
    context: click.Context,
    folder: Path,
    recipe: Path | None,
    sign: Path | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Judge the figures of an evaluation again; exit 1 unless all required artifacts pass."""
    from pydantic import ValidationError

    from contract.errors import AssayError
    from contract.history import last_evaluation
    from contract.limits import GatePart
    from contract.recipe import load_recipe
    from contract.strictness import wider_limits
    from evalsuite.folder import refuse_changed, refuse_edited
    from evalsuite.gate import judge, required
    from evalsuite.gate_files import write_gate_files
    from evalsuite.kept import Kept, is_proven, standing_lines
    from evalsuite.report.terminal import verdict_lines
    from evalsuite.results import read_results

    results, last = read_results(folder), last_evaluation(folder)
    refuse_edited(folder, last)
    try:
        gate = load_recipe(recipe).gate if recipe else GatePart.model_validate(results.limits)
    except ValidationError as error:
        raise AssayError(
            "the limits of the evaluation cannot be read",
            where=str(folder),
            got=str(error.errors()[0]["msg"]),
            hint="run assay eval again, or give --recipe",
        ) from None
    refuse_changed(results)
    require = required(results.rows, gate, results.unloadable) if recipe else results.require
    kept = Kept.of(folder, results)
    limits = gate.model_dump(mode="json", exclude={"require"})
    verdicts = tuple(judge(results, gate))
    subjects = tuple(dict.fromkeys(verdict.digest for verdict in verdicts))
    judged = replace(last, basis=replace(last.basis, limits=limits), subjects=subjects, verdicts=verdicts)
    evaluation = kept.weighed(judged)
    standings = kept.standings(evaluation)
    proven = is_proven(evaluation, standings, require)
    against = standing_lines(evaluation, standings)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "verdicts": [asdict(verdict) for verdict in evaluation.verdicts],
                    "standing": {label: counts.state for label, counts in standings.items()},
                    "require": list(require),
                    "proven": proven,
                }
            )
        )
    else:
        told = verdict_lines(evaluation.verdicts, require, everything=True, against=against, is_proven=proven)
        click.echo("\n".join([*wider_limits(evaluation.basis.limits), *told]))
    write_gate_files(
        folder,
        results,
        evaluation,
        require,
        said_yes=proven,
        against=against,
        junit_to=junit,
        markdown_to=markdown,
        sign_with=sign,
    )
    context.exit(0 if proven else 1)
