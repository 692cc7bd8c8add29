"""What is scored: documents, their prompt ids, and two sets of target ids, all made by the reference once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.example import Example
from contract.prompt import PromptSpec
from contract.runtime import Completion, Runtime
from evalsuite.distance import Pair
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.own_targets import greedy_pairs


@dataclass(frozen=True)
class Targets:
    """The same ids for every artifact of a chain."""

    spec: PromptSpec
    documents: tuple[str, ...]  # whole
    hard_texts: tuple[str, ...]  # the built-in ones, then one of all added tokens where the reference has some
    prompts: tuple[tuple[int, ...], ...]  # of the documents, then of the hard texts
    gold: tuple[tuple[int, ...], ...]  # ids of each document's first reference and of what closes it
    stop_ids: tuple[int, ...]
    bos_id: int | None
    greedy: tuple[Completion, ...]  # the reference's own summaries

    @property
    def pairs(self) -> list[Pair]:
        """Gold and greedy of every document."""
        return greedy_pairs(self.prompts[: len(self.gold)], self.gold, self.greedy)


def encode_all(runtime: Runtime, spec: PromptSpec, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Prompt ids, one per text."""
    return tuple(tuple(runtime.encode(spec.messages(text))) for text in texts)


# prompt ids, gold ids -> the reference's own completions
Write = Callable[[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]], tuple[Completion, ...]]


def make_targets(
    runtime: Runtime,
    spec: PromptSpec,
    examples: Sequence[Example],
    write: Write,
    added_tokens: str | None = None,
) -> Targets:
    """Encode, and let the reference write its own summaries.

    Args:
        runtime: the reference.
        spec: the words around a document.
        examples: what is summarized; each fits the context (`evalsuite.fit`).
        write: makes the reference's completions; it may free `runtime`.
        added_tokens: one more hard text, of the tokens that were added to the reference's vocabulary.
    """
    documents = tuple(example.document for example in examples)
    gold = tuple(
        tuple(runtime.encode_completion(spec.messages(example.document), example.references[0])) for example in examples
    )
    hard_texts = (*HARD_TEXTS, *([added_tokens] if added_tokens else []))
    prompts = encode_all(runtime, spec, [*documents, *hard_texts])
    stop_ids, bos_id = tuple(sorted(runtime.stop_ids)), runtime.bos_id
    greedy = write(prompts[: len(documents)], gold)
    return Targets(spec, documents, hard_texts, prompts, gold, stop_ids, bos_id, greedy)
