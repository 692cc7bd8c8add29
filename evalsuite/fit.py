"""Which documents serving would take: prompt and summary within the context. Nothing is cut to fit, here or there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.artifact import Artifact
from contract.artifact_prompt import gguf_integer, gguf_string
from contract.errors import AssayError
from contract.example import Example
from contract.model_folder import context_of
from contract.prompt import PromptSpec
from contract.runtime import Runtime


@dataclass(frozen=True)
class Fit:
    """What of some examples an artifact, and all that is held against it, can take."""

    context_length: int  # the shortest of theirs, tokens
    too_long: tuple[int, ...]  # indices


def fits(
    prompt_tokens: int, target_tokens: int, max_new_tokens: int, context_length: int, target_length: int | None
) -> bool:
    """Is there room for a prompt and any answer to it, and for a target behind it?

    Args:
        prompt_tokens: of the prompt.
        target_tokens: of the target, what closes it included.
        max_new_tokens: of an answer, at most.
        context_length: of prompt and answer together, or of the prompt alone where the answer has a limit of its own.
        target_length: that limit, of encoder-decoder models, which write no more than it.
    """
    if target_length is None:
        return prompt_tokens + max(target_tokens, max_new_tokens) <= context_length
    return prompt_tokens <= context_length and target_tokens <= target_length


def fit(
    runtime: Runtime, spec: PromptSpec, examples: Sequence[Example], max_new_tokens: int, others: Sequence[int] = ()
) -> Fit:
    """Measure every example's prompt and first reference.

    Args:
        runtime: of the reference at the root of a tree.
        spec: the words around a document.
        examples: with at least one reference each.
        max_new_tokens: of a summary.
        others: context lengths of what is held against it.
    """
    context_length = min(runtime.context_length, *others) if others else runtime.context_length
    too_long = []
    for index, example in enumerate(examples):
        messages = spec.messages(example.document)
        prompt = len(runtime.encode(messages))
        target = len(runtime.encode_completion(messages, example.references[0]))
        if not fits(prompt, target, max_new_tokens, context_length, runtime.target_length):
            too_long.append(index)
    return Fit(context_length, tuple(too_long))


def recorded_context(artifact: Artifact) -> int | None:
    """The context an artifact is served with, in tokens, as its files say; None where only loading it shows.

    What cannot be read is left to loading, too: there it is the artifact's fault.
    """
    try:
        if artifact.kind == "gguf":
            architecture = gguf_string(artifact.gguf_path, "general.architecture")
            return gguf_integer(artifact.gguf_path, f"{architecture}.context_length")
        return context_of(artifact.folder) if artifact.kind in ("merged", "onnx") else None
    except AssayError:
        return None
