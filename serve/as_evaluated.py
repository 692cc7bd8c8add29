"""How a proven artifact was asked, and how it wrote, when it was judged: what is served is that and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from contract.artifact import Artifact
from contract.artifact_prompt import prompt_of, recorded_prompt
from contract.history import Standing
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from serve.proof import UnprovenError


def any_as_evaluated(artifact: Artifact, counts: Standing) -> tuple[PromptSpec, GenerateParams]:
    """By the latest of the passing evaluations whose settings are the artifact's own.

    Raises:
        UnprovenError: by none of them; the message is about the latest.
    """
    refusals = []
    for evaluation in reversed(counts.passes):
        try:
            return as_evaluated(artifact, evaluation.basis.generate)
        except UnprovenError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def as_evaluated(artifact: Artifact, generate: Mapping[str, Any]) -> tuple[PromptSpec, GenerateParams]:
    """The words around a document and how summaries are written, for an artifact with a passing verdict.

    Args:
        artifact: what is about to be served. What it records of itself counts; where it records nothing (a bare file),
            what it was judged with does.
        generate: what its verdict rests on (`Basis.generate`).

    Raises:
        UnprovenError: it records other settings than it was judged with, so its texts are not those that were judged.
    """
    settings = {name: value for name, value in generate.items() if name != "prompt"}
    judged = GenerateParams.recorded({"generate": settings})
    spec = recorded_prompt(artifact)
    if spec is None:
        words = generate.get("prompt")
        spec = PromptSpec.from_dict(words) if words else prompt_of(artifact)
    if "generate" not in artifact.details:
        return spec, judged
    own = GenerateParams.recorded(artifact.details)
    if own.max_new_tokens > judged.max_new_tokens or replace(own, max_new_tokens=judged.max_new_tokens) != judged:
        raise UnprovenError(
            f"{artifact.name} is not proven as it writes: it was judged with other settings than it records",
            where=str(artifact.path),
            expected=str(own),
            got=str(judged),
            hint="run assay eval with a recipe whose generate is the artifact's, or without one",
        )
    return spec, own
