"""The commands `assay export …`: options, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.example import read_examples
from contract.threads import threads_option
from export.lora_gguf_cli import lora_gguf
from export.ollama_cli import ollama_command
from export.onnx_cli import onnx_command

if TYPE_CHECKING:
    from export.imatrix import Calibration


@click.group()
def export() -> None:
    """Write a model in the format of another engine."""


export.add_command(ollama_command)
export.add_command(onnx_command)


@export.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="One folder per quantization goes in here.")
@click.option(
    "--quant",
    "quants",
    default="f16,q8_0,q4_k_m",
    show_default=True,
    help="Any of f32, bf16, f16, q8_0, q6_k, q5_k_m … q2_k (docs/families.md), separated by commas.",
)
@click.option(
    "--check",
    default="structure",
    show_default=True,
    type=click.Choice(["structure", "logits"]),
    help="structure reads every tensor back and compares token ids; logits also runs it against torch.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse a quantization that some tensors cannot take, and a tokenizer llama.cpp is known to differ from.",
)
@click.option(
    "--pre-tokenizer",
    metavar="NAME",
    help="llama.cpp's name for the way text is cut, where it is not recognised; token ids are compared all the same.",
)
@click.option(
    "--imatrix",
    "examples",
    metavar="EXAMPLES",
    help="The training split: quantization weighs errors with an importance matrix of its text.",
)
@click.option(
    "--imatrix-chunks",
    "chunks",
    type=click.IntRange(min=1),
    help="Chunks of 512 tokens the matrix is computed from, at most; 100 by default.",
)
@threads_option()
@click.option("--name", help="Name of the files; the model's own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gguf(
    model: Path,
    out: Path,
    quants: str,
    check: str,
    strict: bool,
    pre_tokenizer: str | None,
    examples: str | None,
    chunks: int | None,
    threads: int,
    name: str | None,
    as_json: bool,
) -> None:
    """Export MODEL (merged, plain folder, or adapter) to GGUF, one artifact per quantization."""
    from export.to_gguf import Check, export_gguf

    made = export_gguf(
        open_artifact(model),
        out,
        quants=wanted_quants(quants),
        check=cast(Check, check),
        strict=strict,
        threads=threads,
        name=name,
        pre_tokenizer=pre_tokenizer,
        imatrix=calibration(examples, chunks),
    )
    if as_json:
        click.echo(json.dumps({"artifacts": [summary(artifact) for artifact in made]}))
        return
    for artifact in made:
        types = ", ".join(f"{kind} {count}" for kind, count in artifact.details["tensor_types"].items())
        click.echo(
            f"{artifact.gguf_path}  {artifact.size_bytes / 1e6:.2f} MB, "
            f"{artifact.details['bits_per_weight']:.2f} bits per weight ({types})"
        )


def wanted_quants(text: str) -> list[str]:
    """The names in a list with commas."""
    return [quant.strip().lower() for quant in text.split(",") if quant.strip()]


def calibration(examples: str | None, chunks: int | None) -> Calibration | None:
    """What --imatrix and --imatrix-chunks ask for.

    Raises:
        AssayError: the examples cannot be read, or there are chunks of nothing.
    """
    from export.imatrix import DEFAULT_CHUNKS, Calibration

    if examples is None:
        if chunks is not None:
            raise AssayError("--imatrix-chunks goes with --imatrix", hint="give the training split with --imatrix")
        return None
    return Calibration(read_examples(examples), chunks or DEFAULT_CHUNKS)


export.add_command(lora_gguf)


def summary(artifact: Artifact) -> dict[str, Any]:
    """For --json."""
    return {
        "path": str(artifact.path),
        "kind": artifact.kind,
        "name": artifact.name,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "details": artifact.details,
        "measurements": artifact.manifest.measurements,
    }
