"""The group `assay export` as the front door knows it: `gguf` here also chooses a type, which takes scoring."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

import click
from click.core import ParameterSource

import export.cli as room
from contract.errors import AssayError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_MOST_BYTES = 2**63 - 1  # no file is larger


class _Bytes(click.ParamType):
    """A size: 900M and 1.5G are powers of 1000, 900Mi and 1.5Gi of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMG]I?)?B?", str(value).strip().upper())
        size = Decimal(found[1]) * _UNITS[found[2] or ""] if found else Decimal(0)
        if not 1 <= size <= _MOST_BYTES:
            self.fail(f"{value!r} is not a size such as 900M, 1.5G or 2Gi", param, ctx)
        return int(size)


class _Limit(click.ParamType):
    """A limit: a number that is not negative."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"{value!r} is not a number from 0 up", param, ctx)
        return number


_OPTIONS = [
    click.Option(
        ["--auto"], is_flag=True, help="Choose: of --quant, or else of all types, keep the one that the limits leave."
    ),
    click.Option(["--data"], metavar="EXAMPLES", help="With --auto: validation examples, never the test split."),
    click.Option(["--limit"], type=click.IntRange(min=1), help="With --auto: the first N documents only."),
    click.Option(["--max-kl"], type=_Limit(), metavar="NATS", help="Mean KL per token from MODEL, with confidence."),
    click.Option(
        ["--max-rouge-loss"], type=_Limit(), metavar="POINTS", help="ROUGE-L lost against MODEL, with confidence."
    ),
    click.Option(["--max-bytes"], type=_Bytes(), metavar="SIZE", help="Size of the file: 900M, 1.5G, 2Gi."),
    click.Option(["--max-ms-per-token"], type=_Limit(), metavar="MS", help="Time per output token, here and now."),
    click.Option(
        ["--prefer"],
        type=click.Choice(["smallest", "fastest", "nearest"]),
        help="Which of those within the limits; default: the smallest with --max-kl or --max-rouge-loss, else the "
        "nearest to MODEL.",
    ),
]
_DECIDES = ("data", "limit", "max_kl", "max_rouge_loss", "max_bytes", "max_ms_per_token", "prefer")


def _gguf(auto: bool, **given: Any) -> None:
    """Export as `export.cli` does, or choose."""
    context = click.get_current_context()
    deciding = {name: given.pop(name) for name in _DECIDES}
    if auto:
        if context.get_parameter_source("quants") == ParameterSource.DEFAULT:
            given["quants"] = None
        context.exit(_choose(deciding, given))
    unused = [f"--{name.replace('_', '-')}" for name, value in deciding.items() if value is not None]
    if unused:
        raise AssayError(f"{', '.join(unused)} only with --auto", hint="add --auto, or leave them out")
    context.invoke(room.gguf, **given)


def _choose(deciding: dict[str, Any], given: dict[str, Any]) -> int:
    """The exit code."""
    from contract.artifact import open_artifact
    from contract.example import read_examples
    from flow.choose_quant import choose_quant
    from flow.quant_bench import Settings
    from flow.quant_limits import Limits
    from flow.quant_table import as_text

    if deciding["data"] is None:
        raise AssayError("--auto needs documents to choose by", hint="--data EXAMPLES, of the validation split")
    quants = given["quants"]
    selection = choose_quant(
        open_artifact(given["model"]),
        read_examples(deciding["data"]),
        given["out"],
        limit=deciding["limit"],
        limits=Limits(
            deciding["max_kl"], deciding["max_rouge_loss"], deciding["max_bytes"], deciding["max_ms_per_token"]
        ),
        prefer=deciding["prefer"],
        quants=None if quants is None else room.wanted_quants(quants),
        check=given["check"],
        settings=Settings(
            given["strict"],
            given["threads"],
            given["name"],
            given["pre_tokenizer"],
            room.calibration(given["examples"], given["chunks"]),
        ),
    )
    if given["as_json"]:
        artifact = None if selection.winner is None else room.summary(selection.winner)
        click.echo(json.dumps({**selection.as_json(), "artifact": artifact}))
    else:
        click.echo(as_text(selection))
    return 0 if selection.winner is not None else 1


gguf = click.Command(
    "gguf", callback=_gguf, params=[*room.gguf.params, *_OPTIONS], help=room.gguf.help, epilog=room.gguf.epilog
)
export = click.Group("export", commands={**room.export.commands, "gguf": gguf}, help=room.export.help)
