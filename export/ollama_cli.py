"""The command `assay export ollama`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from contract.artifact import open_artifact


@click.command("ollama")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder with the Modelfile; must be new.")
@click.option(
    "--num-ctx",
    type=click.IntRange(min=1),
    help="Context length. [default: the file's, lowered until its cache takes 2 GiB]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ollama_command(gguf: Path, out: Path, num_ctx: int | None, as_json: bool) -> None:
    """Write a Modelfile for GGUF (an artifact or a bare .gguf) and say what to type."""
    from export.ollama import export_ollama

    made = export_ollama(open_artifact(gguf), out, num_ctx=num_ctx)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "path": str(made.artifact.path),
                    "modelfile": str(made.modelfile),
                    "name": made.name,
                    "linked": made.linked,
                    "notes": list(made.notes),
                    "commands": made.commands(),
                    **made.artifact.details["ollama"],
                }
            )
        )
        return
    how = "hard link" if made.linked else "copy"
    click.echo(f"{made.modelfile}  (the .gguf beside it is a {how})\n")
    for line in made.commands():
        click.echo(line)
