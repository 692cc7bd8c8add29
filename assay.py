"""The front door: one line per command, each imported only when it is asked for, and the exit codes."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys

import click

# name: (module, what `assay --help` says of it)
COMMANDS = {
    "run": ("flow.cli", "From a recipe to proven artifacts; skips what is there and valid."),
    "data": ("flow.train_cli", "Validate and split the examples; print what was found."),
    "train": ("flow.train_cli", "Fine-tune an adapter."),
    "import": ("export.from_gguf.cli", "Make a model folder of a GGUF, and prove that it is the same model."),
    "merge": ("flow.merge_cli", "Merge an adapter into its base, clean, and prove it by reloading."),
    "export": ("flow.export_cli", "Write a model for another engine: GGUF, ONNX, a LoRA as GGUF, Ollama."),
    "eval": ("evalsuite.cli", "Score artifacts against each other; write metrics, verdict and report."),
    "gate": ("evalsuite.cli", "Say yes or no to an evaluation: exit 0 or 1."),
    "verify": (
        "evalsuite.verify_cli",
        "Check a signed verdict: who signed it, what it says, of which bytes.",
    ),
    "score": ("evalsuite.metrics.score_cli", "Score summaries that are already written, by every text metric."),
    "summarize": ("serve.cli", "Summarize one document."),
    "generate": ("serve.cli", "Print the continuation of a prompt, unchanged."),
    "serve": ("serve.cli", "Serve a proven artifact over HTTP."),
    "inspect": ("flow.cli", "What an artifact is, where it came from, whether its files are intact."),
    "doctor": ("flow.cli", "Check this machine: versions, CPU, disk, and a tiny round trip."),
}


class LazyGroup(click.Group):
    """Knows its commands by the table and imports a room only to run or explain one of its commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        room = vars(importlib.import_module(COMMANDS[cmd_name][0])).values()
        return next(item for item in room if isinstance(item, click.Command) and item.name == cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what was probably meant where a command is unknown."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from contract.errors import did_you_mean

            hint = did_you_mean(args[0], COMMANDS)
            ctx.fail(f'no such command "{args[0]}"' + (f", {hint}" if hint else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="assay", message="%(version)s")
def cli() -> None:
    """Fine-tune a summarization model, export it, prove that nothing was lost on the way, serve what passed."""


def main() -> None:
    """Run a command. Exit 0: done; 1: a gate said no; 2: the input or machine is at fault; 3: a defect of ours."""
    from contract.errors import AssayError

    gc.set_threshold(50_000)  # half a second less for importing torch and transformers, which make many objects
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here calls
    try:
        code = cli.main(standalone_mode=False)
    except AssayError as error:
        click.echo(f"assay: {error}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("assay: stopped", err=True)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a path that cannot be read or written, a full disk
        if os.environ.get("ASSAY_DEBUG"):
            raise
        click.echo(f"assay: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        code = 2
    except Exception as error:
        if os.environ.get("ASSAY_DEBUG"):
            raise
        click.echo(
            f"assay: a defect in Assay, not your fault: {type(error).__name__}: {error}\n"
            "  try: ASSAY_DEBUG=1 and the same command shows where; please report it",
            err=True,
        )
        code = 3
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
