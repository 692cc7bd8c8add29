"""The command reference as Markdown: `python -m flow.command_reference > docs/commands.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

HEAD = """# Commands

Progress goes to stderr, the result to stdout; `--json` prints one JSON object there. Exit codes: 0 done, and proven
where proof is the job; 1 a gate said no (fail or inconclusive); 2 the input or the machine is at fault, one message;
3 a defect in Assay.

This page is made from the program (`python -m flow.command_reference > docs/commands.md`); a test holds it true.
"""


def reference() -> str:
    """The whole page."""
    import assay

    parts = [HEAD]
    for context in _contexts("assay", assay.cli, None):
        parts.append(f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def _contexts(name: str, command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    """Of the command and all below it, as the program makes them: `-h` is inherited."""
    widths = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, parent, name, **{**command.context_settings, **widths})
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            inner = command.get_command(context, below)
            assert inner is not None
            yield from _contexts(below, inner, context)


if __name__ == "__main__":
    print(reference(), end="")
