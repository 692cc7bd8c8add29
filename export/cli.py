"""The commands `assay merge` and `assay export …`: options, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import click

from contract.artifact import Artifact, open_artifact


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the merged model; must be new.")
@click.option(
    "--dtype",
    default="float16",
    show_default=True,
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Stored dtype; merged in float32.",
)
@click.option(
    "--base",
    "base_weights",
    default="W16",
    show_default=True,
    type=click.Choice(["W16", "NF4"], case_sensitive=False),
    help="Merge onto the stored weights, or onto those put through NF4 as QLoRA trained on them.",
)
@click.option(
    "--trained-on", type=click.Choice(["nf4", "w16"]), help="What an adapter that does not record it was trained on."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(adapter: Path, out: Path, dtype: str, base_weights: str, trained_on: str | None, as_json: bool) -> None:
    """Merge ADAPTER (Assay's own or plain PEFT) into its base, clean the result and reload it to prove it."""
    from export.merge import Dtype, merge_adapter

    merged = merge_adapter(
        open_artifact(adapter),
        out,
        dtype=cast(Dtype, dtype),
        base_weights="nf4" if base_weights.upper() == "NF4" else "w16",
        trained_on=cast(Literal["w16", "nf4"] | None, trained_on),
    )
    if as_json:
        click.echo(json.dumps(_summary(merged)))
        return
    click.echo(f"{merged.path}  {merged.details['dtype']}, {merged.size_bytes / 1e6:.1f} MB, {merged.digest[:12]}")
    for change in merged.details["cleaning"]:
        click.echo(f"  {change}")


@click.group()
def export() -> None:
    """Write a model in the format of another engine."""


@export.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="One folder per quantization goes in here.")
@click.option(
    "--quant",
    "quants",
    default="f16,q8_0,q4_k_m",
    show_default=True,
    help="Any of f32, f16, q8_0, q4_k_m, separated by commas.",
)
@click.option(
    "--check",
    default="structure",
    show_default=True,
    type=click.Choice(["structure", "logits"]),
    help="structure reads every tensor back and compares token ids; logits also runs it against torch.",
)
@click.option("--strict", is_flag=True, help="Refuse a quantization that some tensors cannot take.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--name", help="Name of the files; the model's own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gguf(
    model: Path, out: Path, quants: str, check: str, strict: bool, threads: int, name: str | None, as_json: bool
) -> None:
    """Export MODEL (merged, plain Llama folder, or adapter) to GGUF, one artifact per quantization."""
    from export.to_gguf import Check, export_gguf

    wanted = [quant.strip().lower() for quant in quants.split(",") if quant.strip()]
    made = export_gguf(
        open_artifact(model), out, quants=wanted, check=cast(Check, check), strict=strict, threads=threads, name=name
    )
    if as_json:
        click.echo(json.dumps({"artifacts": [_summary(artifact) for artifact in made]}))
        return
    for artifact in made:
        types = ", ".join(f"{kind} {count}" for kind, count in artifact.details["tensor_types"].items())
        click.echo(
            f"{artifact.gguf_path}  {artifact.size_bytes / 1e6:.2f} MB, "
            f"{artifact.details['bits_per_weight']:.2f} bits per weight ({types})"
        )


def _summary(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "kind": artifact.kind,
        "name": artifact.name,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "details": artifact.details,
        "measurements": artifact.manifest.measurements,
    }
