"""The Modelfile for Ollama, and the commands that go with it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from contract.errors import AssayError
from contract.prompt import PromptSpec

if TYPE_CHECKING:
    from export.ollama_facts import GgufFacts

MODELFILE = "Modelfile"


def modelfile(
    file_name: str,
    facts: GgufFacts,
    spec: PromptSpec,
    *,
    num_ctx: int,
    num_predict: int | None = None,
    license_name: str | None = None,
) -> str:
    """The text of the Modelfile, decoding as it was proven: greedy, nothing penalised.

    Args:
        file_name: the .gguf beside it.
        facts: what the file says of itself.
        spec: the words around the document; its system turn becomes SYSTEM.
        num_ctx: context length in tokens.
        num_predict: most new tokens; None leaves it to Ollama.
        license_name: in place of what the file says.

    Raises:
        AssayError: a text that a Modelfile cannot hold.
    """
    first = spec.messages("x")[0]
    system = first.content.strip() if first.role == "system" else None
    license_name = license_name or facts.license_name
    lines = [
        f"FROM ./{file_name}",
        "",
        "# The chat template the model was trained with. The words around the document are the client's to send:",
        "# README.md has them.",
        f'TEMPLATE """{facts.turns.text()}"""',
        "",
        *[f"PARAMETER stop {_quoted(stop, 'a stop string')}" for stop in facts.stops],
        "# Greedy, as it was proven. A penalty on repetition, which Ollama may set by default, changes greedy text.",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        "# Left out, Ollama takes a short context and cuts long documents without a word.",
        f"PARAMETER num_ctx {num_ctx}",
        *([f"PARAMETER num_predict {num_predict}"] if num_predict else []),
        *(["", f"SYSTEM {_quoted(system, 'prompt.system')}"] if system else []),
        *(["", f"LICENSE {_quoted(license_name, 'the licence')}"] if license_name else []),
    ]
    return "\n".join(lines) + "\n"


def run_command(name: str, spec: PromptSpec) -> str:
    """A shell command that asks Ollama for a summary of document.txt, the recipe's words around it."""
    words = [part.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n") for part in _around(spec)]
    return f'ollama run {name} "$(printf -- {shlex.quote("%s".join(words))} "$(cat document.txt)")"'


def ollama_usage(name: str, spec: PromptSpec) -> str:
    """The card's section on Ollama, as Markdown."""
    return (
        "## Ollama\n\n"
        f"```sh\nollama create {name} -f {MODELFILE}\n{run_command(name, spec)}\n```\n\n"
        "Over HTTP (`/api/chat`, `/v1/chat/completions`) the user's message holds the words above, the document in its "
        "place, and no spaces or line ends around the whole: Ollama's templates cannot trim."
    )


def _around(spec: PromptSpec) -> tuple[str, str]:
    """What stands before and after the document in the user's message."""
    marker = "\uf8f0"
    before, _, after = spec.messages(marker)[-1].content.strip().partition(marker)
    return before, after


def _quoted(text: str, what: str) -> str:
    """Text in a Modelfile's quotes. Ollama drops what does not print from it and ends it at three quotes."""
    dropped = next((char for char in text if char not in "\n\t" and not char.isprintable()), None)
    if '"""' in text or dropped:
        raise AssayError(
            f"a Modelfile cannot hold {what}",
            got=f"U+{ord(dropped):04X}, which does not print" if dropped else "three quotes in a row",
            hint="take it out of the recipe",
        )
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
