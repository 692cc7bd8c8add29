"""A GGUF for Ollama: a folder with the file, a Modelfile whose template is proven, and a card."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from contract.artifact import Artifact, Parent, new_artifact, refuse_existing, tool_versions
from contract.artifact_prompt import gguf_string, prompt_of
from contract.errors import AssayError
from contract.history import Standing, known_history, standing
from contract.spoken_against import spoken_against
from export.model_card import model_card
from export.modelfile import MODELFILE, modelfile, ollama_usage, run_command
from export.ollama_facts import GgufFacts, gguf_facts

# What the key-value cache may take where nobody says: a Llama 3.2 1B would ask for 4 GiB at its own context.
CACHE_BYTES = 2 << 30
_STEP = 256  # a context that had to be lowered is a multiple of this


@dataclass(frozen=True)
class OllamaModel:
    """What was made: the artifact, what to call it in Ollama, and what the user must know."""

    artifact: Artifact
    name: str
    linked: bool  # the .gguf is a hard link, else a copy
    notes: tuple[str, ...]

    @property
    def modelfile(self) -> Path:
        """Where the Modelfile is, from here if it lies below."""
        path = self.artifact.folder / MODELFILE
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

    def commands(self) -> list[str]:
        """What to type: make the model, then ask it for a summary of document.txt."""
        return [
            f"ollama create {self.name} -f {shlex.quote(str(self.modelfile))}",
            run_command(self.name, prompt_of(self.artifact)),
        ]


def export_ollama(gguf: Artifact, out: Path, *, num_ctx: int | None = None) -> OllamaModel:
    """Write a folder that `ollama create` takes. The .gguf in it is a hard link, or a copy on another file system.

    Args:
        gguf: a GGUF artifact or a bare .gguf.
        out: the folder; must be new.
        num_ctx: context length in tokens; by default the file's, lowered until an f16 cache fits `CACHE_BYTES`.

    Raises:
        AssayError: it is no GGUF or not intact, `out` exists, the context is longer than the file's, the chat
            template cannot be written in Go's template language, or Ollama would read its text as other ids.
    """
    refuse_existing(out)
    if gguf.kind != "gguf":
        raise AssayError(
            "only a GGUF can be given to Ollama",
            where=str(gguf.path),
            got=gguf.kind,
            expected="a gguf artifact, or a .gguf",
            hint="assay export gguf makes one",
        )
    if not gguf.foreign:
        gguf.verify()
    file, spec = gguf.gguf_path, prompt_of(gguf)
    if gguf_string(file, "general.architecture") == "t5":
        raise AssayError(
            "Ollama does not run models with an encoder",
            where=str(file),
            got="t5",
            hint=f"assay serve {gguf.path} runs it",
        )
    facts = gguf_facts(file, spec)
    context = _context(num_ctx, facts, file)
    name, counts = ollama_name(gguf), standing(known_history(gguf.verdict_path), gguf.digest)
    inherited = {key: value for key, value in gguf.details.items() if key != "ollama"}
    with new_artifact(
        out,
        "gguf",
        gguf.name,
        parents=[Parent("gguf", str(gguf.path.resolve()), gguf.digest)],
        tools=tool_versions("llama-cpp-python"),
        details={
            **inherited,
            "ollama": {"name": name, "num_ctx": context, "stop": list(facts.stops), "system": facts.turns.place},
        },
    ) as draft:
        draft.hashed += [record for record in gguf.manifest.files if record.path == file.name]
        linked = _link(file, draft.path / file.name)
        text = modelfile(
            file.name,
            facts,
            spec,
            num_ctx=context,
            num_predict=gguf.details.get("generate", {}).get("max_new_tokens"),
            license_name=gguf.details.get("license"),
        )
        (draft.path / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
        label = gguf.details.get("quant", gguf.name)
        verdict = counts.verdict if counts and spoken_against(gguf) is None else None
        card = model_card({label: gguf}, title=gguf.name, verdict=verdict, usage=ollama_usage(name, spec))
        (draft.path / "README.md").write_text(card, encoding="utf-8", newline="\n")
    return OllamaModel(draft.finished, name, linked, _notes(gguf, counts, facts, context))


def ollama_name(gguf: Artifact) -> str:
    """What the model is called in Ollama: name and quantization in small letters."""
    words = [gguf.name, gguf.details["quant"]] if "quant" in gguf.details else [gguf.name]
    return re.sub(r"[^a-z0-9._-]+", "-", "-".join(words).lower()).strip("-._") or "summarizer"


def _context(asked: int | None, facts: GgufFacts, path: Path) -> int:
    longest = facts.context_length
    if asked is None:
        fits = CACHE_BYTES // facts.cache_bytes
        return longest if longest <= fits else max(_STEP, fits // _STEP * _STEP)
    if asked > longest:
        raise AssayError(
            "the context is longer than the model was made for",
            where=str(path),
            expected=f"at most {longest}",
            got=str(asked),
        )
    return asked


def _link(source: Path, target: Path) -> bool:
    """Hard link, or copy where the file system has none between the two; True if linked."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def _notes(gguf: Artifact, counts: Standing | None, facts: GgufFacts, context: int) -> tuple[str, ...]:
    notes = []
    if counts is None:
        notes.append("not proven: nobody evaluated this file (assay eval)")
    elif spoken_against(gguf) is not None and counts.state == "pass":
        notes.append("not proven: something that it was made from has not passed")
    elif counts.state != "pass":
        notes.append(f"not proven: its verdict is {counts.state}")
    if facts.plain:
        notes.append("the file has no chat template; the built-in plain one is written, as assay serve uses it")
    if facts.date:
        notes.append(f"the chat template asks for the date; {facts.date} is written, which the model was made with")
    if facts.turns.place == "none":
        notes.append("the chat template takes no system turn; Ollama leaves out what a client sends as one")
    if context < facts.context_length:
        notes.append(f"context {context} of {facts.context_length} tokens; Ollama cuts longer prompts silently")
    return tuple(notes)
