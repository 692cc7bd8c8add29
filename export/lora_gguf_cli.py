"""The command `assay export lora-gguf`: options, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from contract.artifact import open_artifact


@click.command("lora-gguf")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the adapter; must be new.")
@click.option("--dtype", default="f32", show_default=True, type=click.Choice(["f32", "f16"]), help="Stored dtype.")
@click.option("--name", help="Name of the file; the adapter's own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def lora_gguf(adapter: Path, out: Path, dtype: str, name: str | None, as_json: bool) -> None:
    """Export ADAPTER (PEFT LoRA) as a GGUF adapter for a GGUF of its base: llama.cpp's --lora, Ollama's ADAPTER."""
    from export.cli import summary
    from export.lora_gguf import export_lora_gguf
    from export.lora_gguf_file import LoraType

    made = export_lora_gguf(open_artifact(adapter), out, dtype=cast(LoraType, dtype), name=name)
    if as_json:
        click.echo(json.dumps(summary(made)))
        return
    details = made.details
    ranks = ", ".join(f"rank {rank}: {count}" for rank, count in details["ranks"].items())
    click.echo(
        f"{made.gguf_path}  {made.size_bytes / 1e6:.2f} MB, {details['weights']} weights ({ranks}), "
        f"alpha {details['alpha']:g}"
    )
