"""The option --threads, alike for every command that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from contract.cpu import usable_cores


def threads_option(help: str = "CPU threads.") -> Callable[[Any], Any]:
    """The decorator. What the machine has is asked when the command runs; its help is the same on every machine."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=usable_cores,
        show_default="the cores this process may use",
        help=help,
    )
