"""What is scored: documents that fit, their prompt ids, and two sets of target ids, all made by the reference once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.errors import AssayError
from contract.example import Example
from contract.prompt import PromptSpec, shorten
from contract.runtime import Completion, Runtime
from evalsuite.distance import Pair
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.own_targets import greedy_pairs


@dataclass(frozen=True)
class Targets:
    """The same ids for every artifact of a chain."""

    spec: PromptSpec
    documents: tuple[str, ...]  # shortened where they had to be
    shortened: int
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
    max_new_tokens: int,
    write: Write,
    added_tokens: str | None = None,
) -> Targets:
    """Shorten, encode, and let the reference write its own summaries.

    Args:
        runtime: the reference.
        spec: the words around a document.
        examples: what is summarized.
        max_new_tokens: room that is left for a summary.
        write: makes the reference's completions.
        added_tokens: one more hard text, of the tokens that were added to the reference's vocabulary.

    Raises:
        AssayError: a prompt leaves no room for any of its document.
    """
    documents, gold = [], []
    bare = len(runtime.encode(spec.messages("")))
    for example in examples:
        target = runtime.encode_completion(spec.messages(example.document), example.references[0])
        room = _room(runtime, target, max_new_tokens, example.id)
        if bare >= room:
            raise AssayError(
                "a reference summary and the prompt leave no room for the document",
                where=f"example {example.id}",
                expected=f"together under the model's context of {runtime.context_length} tokens",
                got=f"a summary of {len(target)} tokens, {max_new_tokens} reserved for the model's own",
            )
        documents.append(
            shorten(
                example.document,
                lambda text, room=room: (  # type: ignore[misc]
                    len(runtime.encode(spec.messages(text))) <= room
                ),
            )
        )
        gold.append(tuple(target))
    hard_texts = (*HARD_TEXTS, *([added_tokens] if added_tokens else []))
    prompts = encode_all(runtime, spec, [*documents, *hard_texts])
    greedy = write(prompts[: len(documents)], gold)
    shortened = sum(text != example.document for text, example in zip(documents, examples, strict=True))
    stop_ids = tuple(sorted(runtime.stop_ids))
    return Targets(
        spec, tuple(documents), shortened, hard_texts, prompts, tuple(gold), stop_ids, runtime.bos_id, greedy
    )


def _room(runtime: Runtime, target: Sequence[int], max_new_tokens: int, example_id: str) -> int:
    """Tokens left for a prompt: answers take theirs from the same context, or (encoder-decoder) have a limit of theirs.

    Raises:
        AssayError: the reference summary is longer than that limit.
    """
    if runtime.target_length is None:
        return runtime.context_length - max(len(target), max_new_tokens + 1)
    if len(target) > runtime.target_length:
        raise AssayError(
            "a reference summary is longer than the decoder's context",
            where=f"example {example_id}",
            expected=f"at most {runtime.target_length} tokens",
            got=f"{len(target)} tokens",
        )
    return runtime.context_length
