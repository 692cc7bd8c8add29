"""The commands `data` and `train`: options, the base made ready where it is a GGUF, the call, and what is printed."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contract.threads import threads_option

if TYPE_CHECKING:
    from trainer.data import Splits
    from trainer.lengths import LengthReport


@click.command()
@click.argument("recipe")
@click.option("--data", "data", metavar="FILE_OR_DIR", help="Replaces the recipe's data.")
@click.option("--model", "model", metavar="BASE", help="Replaces the recipe's base model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def data(recipe: str, data: str | None, model: str | None, as_json: bool) -> None:
    """Validate and split the examples; print what was found, and which limits the test split is too small to show."""
    from contract.recipe import load_recipe
    from contract.sample_size import recipe_sample
    from flow.gguf_base import described, refuse_unfetched, with_base
    from trainer.data import load_splits
    from trainer.lengths import length_report
    from trainer.report import data_text

    chosen = with_base(load_recipe(recipe), model)
    refuse_unfetched(chosen, recipe)
    splits = load_splits(chosen, data)
    with described(chosen) as counted:
        lengths = length_report(counted, splits)
    sample = recipe_sample(chosen, len(splits.test), lengths.splits["test"].summary.median)
    if as_json:
        click.echo(json.dumps(_data_json(splits, lengths) | {"sample": sample.as_dict()}, ensure_ascii=False))
    else:
        click.echo(data_text(splits, lengths, sample))


@click.command()
@click.argument("recipe")
@click.option(
    "--out",
    metavar="DIR",
    help="Where the adapter goes. [default: runs/STEM/adapter, of RECIPE's file name]",
)
@click.option("--data", "data", metavar="FILE_OR_DIR", help="Replaces the recipe's data.")
@click.option("--model", "model", metavar="BASE", help="Replaces the recipe's base model.")
@click.option("--resume", is_flag=True, help="Go on from the newest complete checkpoint.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes CUDA where there is one.",
)
@threads_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(
    recipe: str,
    out: str | None,
    data: str | None,
    model: str | None,
    resume: bool,
    device: str,
    threads: int,
    as_json: bool,
) -> None:
    """Fine-tune an adapter. Of a base that is a GGUF a model folder is made in the run first, as `run` makes it."""
    from contract.artifact import refuse_existing
    from contract.recipe import load_recipe, run_folder
    from flow.gguf_base import gguf_base, import_base, on_folder, refuse_unfetched, with_base
    from flow.ledger import Ledger, is_run, locked
    from trainer.data import load_splits
    from trainer.report import adapter_text
    from trainer.train import train_adapter

    chosen = with_base(load_recipe(recipe), model)
    refuse_unfetched(chosen, recipe)
    folder = Path(out) if out else run_folder(recipe) / "adapter"
    splits = load_splits(chosen, data)
    with ExitStack() as held:
        if gguf := gguf_base(chosen):
            refuse_existing(folder)  # before the import, which takes longer than saying so
            run = folder.parent if is_run(folder.parent) else run_folder(recipe)
            held.enter_context(locked(run))
            made, _ = import_base(gguf, Ledger(run), threads=threads, command="train")
            chosen = on_folder(chosen, made.path)
        artifact = train_adapter(chosen, splits, folder, resume=resume, device=device, threads=threads)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "path": str(artifact.path),
                    "digest": artifact.digest,
                    "details": artifact.details,
                    "measurements": artifact.manifest.measurements,
                },
                ensure_ascii=False,
            )
        )
    else:
        click.echo(adapter_text(artifact))


def _data_json(splits: Splits, lengths: LengthReport) -> dict[str, object]:
    return {"sha256": splits.sha256, **splits.report.as_dict(), "lengths": lengths.as_dict()}
