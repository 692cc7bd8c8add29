"""`assay export onnx`: options, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from contract.artifact import open_artifact
from contract.threads import threads_option


@click.command("onnx")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="One folder per precision goes in here.")
@click.option(
    "--precision",
    "precisions",
    default="fp32,int8",
    show_default=True,
    help="Any of fp32, fp16 (CUDA), int8 and int4 (docs/onnx.md), separated by commas.",
)
@click.option(
    "--check",
    default="structure",
    show_default=True,
    type=click.Choice(["structure", "logits"]),
    help="structure reads graphs and weights back; logits also runs them against torch, with and without cache.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse a precision some weights cannot take, and int8 in 7 bits (CPUs without VNNI).",
)
@threads_option()
@click.option("--name", help="Name of the artifacts; the model's own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def onnx_command(
    model: Path, out: Path, precisions: str, check: str, strict: bool, threads: int, name: str | None, as_json: bool
) -> None:
    """Export MODEL (merged, plain folder, or adapter) to ONNX, one artifact per precision."""
    from export.cli import summary
    from export.to_onnx import Check, Precision, export_onnx

    wanted = [precision.strip().lower() for precision in precisions.split(",") if precision.strip()]
    made = export_onnx(
        open_artifact(model),
        out,
        precisions=cast(list[Precision], wanted),
        check=cast(Check, check),
        strict=strict,
        threads=threads,
        name=name,
    )
    if as_json:
        click.echo(json.dumps({"artifacts": [summary(artifact) for artifact in made]}))
        return
    for artifact in made:
        click.echo(
            f"{artifact.path}  {artifact.size_bytes / 1e6:.2f} MB, "
            f"{artifact.details['bits_per_weight']:.2f} bits per weight ({_operators(artifact.details)})"
        )


def _operators(details: dict[str, Any]) -> str:
    quantized = details["quantization"].get("operators", {})
    found = ", ".join(f"{count} {name}" for name, count in quantized.items())
    return f"{found} quantized" if found else ", ".join(details["submodels"])
