"""The command `assay import`: options, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from contract.threads import threads_option


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The model folder; must be new.")
@click.option(
    "--dtype",
    default="float16",
    show_default=True,
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Stored dtype; dequantized in float32 and rounded once.",
)
@click.option("--name", help="Name of the model; the file's own by default.")
@threads_option("For running both side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_command(file: Path, out: Path, dtype: str, name: str | None, threads: int, as_json: bool) -> None:
    """Make a model folder of a GGUF FILE, to train on or to export, and run both side by side to prove it."""
    from export.cli import summary
    from export.from_gguf.description import Dtype
    from export.from_gguf.to_folder import import_gguf

    made = import_gguf(file, out, dtype=cast(Dtype, dtype), name=name, threads=threads)
    if as_json:
        click.echo(json.dumps(summary(made)))
        return
    imported, check = made.details["imported"], made.manifest.measurements["check"]
    click.echo(f"{made.path}  {made.details['dtype']}, {made.size_bytes / 1e6:.1f} MB, {made.digest[:12]}")
    click.echo(
        f"  torch against llama.cpp on these weights in float32: at most {check['torch_f32']['max_abs']:.2g} between "
        f"logits; against the file itself, which computes with {imported['bits_per_weight']:.2f} bits per weight: "
        f"KL {check['gguf']['mean_kl_nats']:.2g} nats"
    )
    if "cost" in imported:
        click.echo(f"  {imported['cost']}")
