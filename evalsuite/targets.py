"""What is scored: documents that fit, their prompt ids, and two sets of target ids, all made by the reference once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.example import Example
from contract.prompt import PromptSpec, shorten
from contract.runtime import Completion, GenerateParams, Runtime
from evalsuite.distance import Pair
from evalsuite.hard_texts import HARD_TEXTS


@dataclass(frozen=True)
class Targets:
    """The same ids for every artifact of a chain."""

    spec: PromptSpec
    documents: tuple[str, ...]  # shortened where they had to be
    shortened: int
    prompts: tuple[tuple[int, ...], ...]  # of the documents, then of HARD_TEXTS
    pairs: tuple[Pair, ...]  # gold, greedy of document 0, gold, greedy of document 1, … (neighbours share a prompt)
    stop_ids: frozenset[int]
    bos_id: int | None
    greedy: tuple[Completion, ...]  # the reference's own summaries


def encode_all(runtime: Runtime, spec: PromptSpec, documents: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Prompt ids of the documents, then of the built-in hard texts."""
    return tuple(tuple(runtime.encode(spec.messages(text))) for text in (*documents, *HARD_TEXTS))


def make_targets(runtime: Runtime, spec: PromptSpec, examples: Sequence[Example], max_new_tokens: int) -> Targets:
    """Shorten, encode, and let the reference write its own summaries.

    Gold targets are the first reference of each example with the token that closes it; greedy ones are what the
    reference writes, with that same token where it ended by itself.

    Raises:
        AssayError: a prompt leaves no room for any of its document.
    """
    documents, gold = [], []
    for example in examples:
        target = runtime.encode_completion(spec.messages(example.document), example.references[0])
        room = runtime.context_length - max(len(target), max_new_tokens + 1)
        documents.append(
            shorten(
                example.document,
                lambda text, room=room: (  # type: ignore[misc]
                    len(runtime.encode(spec.messages(text))) <= room
                ),
            )
        )
        gold.append(target)
    prompts = encode_all(runtime, spec, documents)
    greedy = runtime.generate(prompts[: len(documents)], GenerateParams(max_new_tokens=max_new_tokens))
    pairs: list[Pair] = []
    for prompt, target, completion in zip(prompts[: len(documents)], gold, greedy, strict=True):
        pairs += [(prompt, target), (prompt, [*completion.ids, *(target[-1:] if completion.stop == "eos" else ())])]
    shortened = sum(text != example.document for text, example in zip(documents, examples, strict=True))
    return Targets(
        spec, tuple(documents), shortened, prompts, tuple(pairs), runtime.stop_ids, runtime.bos_id, tuple(greedy)
    )
