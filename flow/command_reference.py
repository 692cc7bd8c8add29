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
    for words, command in _commands("assay", assay.cli):
        context = click.Context(command, info_name=words, terminal_width=100, max_content_width=100)
        parts.append(f"## {words}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(f"{words} {name}", inner)


if __name__ == "__main__":
    print(reference(), end="")
