"""The command `assay merge`: options, the base chosen where that is asked for, one call, the result printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, cast

import click

from contract.artifact import open_artifact
from contract.threads import threads_option

_EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "dialogues" / "valid.jsonl"


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
    type=click.Choice(["W16", "NF4", "auto"], case_sensitive=False),
    help="Merge onto the stored weights, onto those put through NF4 as QLoRA trained on them, or onto the nearer.",
)
@click.option(
    "--trained-on", type=click.Choice(["nf4", "w16"]), help="What an adapter that does not record it was trained on."
)
@click.option(
    "--data",
    metavar="EXAMPLES",
    help="Documents to choose the base by (--base auto), and to see whether a T5 or BART runs in float16; "
    "default: the embedded ones.",
)
@threads_option("For what --data is for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(
    adapter: Path,
    out: Path,
    dtype: str,
    base_weights: str,
    trained_on: str | None,
    data: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Merge ADAPTER (Assay's own or plain PEFT) into its base, clean the result and reload it to prove it."""
    from contract.artifact import refuse_existing
    from contract.example import read_examples
    from export.cli import summary
    from export.merge import Dtype, merge_adapter
    from export.peft_config import read_adapter_config
    from flow.choose_base import MOST_DOCUMENTS, choose_base
    from flow.half_precision import PROMPTS, check_float16

    opened = open_artifact(adapter)
    if opened.kind == "adapter":
        read_adapter_config(opened.folder)  # refuses it before its base is looked for and run
    known = cast(Literal["w16", "nf4"] | None, trained_on)
    chosen: Literal["w16", "nf4"] = "nf4" if base_weights.upper() == "NF4" else "w16"
    choice = None
    if base_weights.lower() == "auto":
        refuse_existing(out)
        if data is None:
            click.echo("note: no --data, so the embedded dialogues decide which base is nearer", err=True)
        examples = read_examples(data or str(_EMBEDDED), None, limit=MOST_DOCUMENTS)
        choice = choose_base(opened, examples, dtype=cast(Dtype, dtype), trained_on=known, threads=threads)
        chosen = choice.base
        click.echo(choice.as_text(), err=True)
    activations = None
    if dtype == "float16":
        refuse_existing(out)
        activations = check_float16(
            opened,
            read_examples(data or str(_EMBEDDED), None, limit=PROMPTS),
            base_weights=chosen,
            threads=threads,
            origin=data or "embedded dialogues",
        )
    merged = merge_adapter(
        opened,
        out,
        dtype=cast(Dtype, dtype),
        base_weights=chosen,
        trained_on=known,
        base_choice=choice.as_details() if choice else None,
        activations=activations,
    )
    if as_json:
        click.echo(json.dumps(summary(merged)))
        return
    click.echo(f"{merged.path}  {merged.details['dtype']}, {merged.size_bytes / 1e6:.1f} MB, {merged.digest[:12]}")
    for change in merged.details["cleaning"]:
        click.echo(f"  {change}")
