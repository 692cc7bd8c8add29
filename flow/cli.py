"""The commands that string rooms together: run, inspect, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contract.threads import threads_option

if TYPE_CHECKING:
    from flow.run import Stage


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder. [default: runs/STEM, of RECIPE's file name]",
)
@click.option("--data", metavar="FILE_OR_DIR", help="Examples, in place of the recipe's.")
@click.option("--model", metavar="BASE", help="Base model, in place of the recipe's.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."
)
@threads_option()
@click.option(
    "--until",
    type=click.Choice(["adapter", "merged", "gguf", "onnx", "eval"]),
    default="eval",
    show_default=True,
    help="The last stage to do.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run_command(
    recipe: Path,
    out: Path | None,
    data: str | None,
    model: str | None,
    device: str,
    threads: int,
    until: Stage,
    as_json: bool,
) -> None:
    """From RECIPE to proven exports: train, merge, GGUF, ONNX, evaluate. What is there and valid is not done again."""
    from contract.recipe import load_recipe, run_folder
    from flow.gguf_base import refuse_unfetched, with_base
    from flow.run import refuse_until, run_recipe

    loaded = with_base(load_recipe(recipe), model)
    refuse_unfetched(loaded, recipe)
    refuse_until(loaded, until)
    result = run_recipe(loaded, out or run_folder(recipe), data=data, device=device, threads=threads, until=until)
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        click.echo(result.as_text())
    sys.exit(0 if result.proven else 1)


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(artifact: Path, as_json: bool) -> None:
    """What ARTIFACT is, where it came from, and whether its files are intact."""
    from flow.inspect_artifact import as_text, describe

    description = describe(artifact)
    click.echo(json.dumps(description) if as_json else as_text(description))
    sys.exit(2 if description["damage"] else 0)


@click.command("doctor")
@click.option("--recipe", type=click.Path(path_type=Path), help="Also send a small twin of its model all the way.")
@click.option("--data", metavar="FILE_OR_DIR", help="With --recipe: examples, in place of the recipe's.")
@click.option("--model", metavar="BASE", help="With --recipe: base model, in place of the recipe's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(recipe: Path | None, data: str | None, model: str | None, as_json: bool) -> None:
    """Check this machine: versions, CPU features, disk, and a tiny convert-quantize-load round trip."""
    from contract.recipe import load_recipe
    from flow.doctor import as_text, examine, try_recipe
    from flow.gguf_base import refuse_unfetched, with_base

    loaded = None if recipe is None else with_base(load_recipe(recipe), model)
    if loaded is not None and recipe is not None:
        refuse_unfetched(loaded, recipe)
    findings = examine()
    if loaded is not None:
        findings = try_recipe(findings, loaded, data)
    click.echo(json.dumps(findings) if as_json else as_text(findings))
    sys.exit(2 if findings["problems"] else 0)
