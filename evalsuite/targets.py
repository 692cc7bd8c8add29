"""What is scored: documents that fit, their prompt ids, and two sets of target ids, all made by the reference once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.example import Example
from contract.prompt import PromptSpec, shorten
from contract.runtime import Completion, Runtime
from evalsuite.distance import Pair
from evalsuite.hard_texts import HARD_TEXTS


@dataclass(frozen=True)
class Targets:
    """The same ids for every artifact of a chain."""

    spec: PromptSpec
    documents: tuple[str, ...]  # shortened where they had to be
    shortened: int
    prompts: tuple[tuple[int, ...], ...]  # of the documents, then of HARD_TEXTS
    gold: tuple[tuple[int, ...], ...]  # ids of each document's first reference and of what closes it
    stop_ids: tuple[int, ...]
    bos_id: int | None
    greedy: tuple[Completion, ...]  # the reference's own summaries

    @property
    def pairs(self) -> list[Pair]:
        """Gold, greedy of document 0, gold, greedy of document 1, …: neighbours share a prompt.

        A greedy target ends with the id that closes the gold one where the reference ended by itself.
        """
        pairs: list[Pair] = []
        for prompt, gold, completion in zip(self.prompts, self.gold, self.greedy, strict=False):
            closing = gold[-1:] if completion.stop == "eos" else ()
            pairs += [(prompt, gold), (prompt, (*completion.ids, *closing))]
        return pairs


def encode_all(runtime: Runtime, spec: PromptSpec, documents: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Prompt ids of the documents, then of the built-in hard texts."""
    return tuple(tuple(runtime.encode(spec.messages(text))) for text in (*documents, *HARD_TEXTS))


Write = Callable[[Sequence[tuple[int, ...]]], tuple[Completion, ...]]


def make_targets(
    runtime: Runtime, spec: PromptSpec, examples: Sequence[Example], max_new_tokens: int, write: Write
) -> Targets:
    """Shorten, encode, and let the reference write its own summaries.

    Args:
        runtime: the reference.
        spec: the words around a document.
        examples: what is summarized.
        max_new_tokens: room that is left for a summary.
        write: makes the reference's completions from prompt ids.

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
        gold.append(tuple(target))
    prompts = encode_all(runtime, spec, documents)
    greedy = write(prompts[: len(documents)])
    shortened = sum(text != example.document for text, example in zip(documents, examples, strict=True))
    stop_ids = tuple(sorted(runtime.stop_ids))
    return Targets(spec, tuple(documents), shortened, prompts, tuple(gold), stop_ids, runtime.bos_id, greedy)
