"""What may go into an encoder-decoder model: its two sides have a limit each."""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import AssayError
from runtimes.answer import check_ids


def check_sources(sources: Sequence[Sequence[int]], context_length: int, vocab_size: int) -> None:
    """Raise where a source is empty, longer than the encoder's context, or has ids the model does not know."""
    for index, source in enumerate(sources):
        if not source:
            raise AssayError("the prompt is empty", where=f"prompt {index}")
        if len(source) > context_length:
            raise AssayError(
                "the prompt is longer than the encoder's context",
                where=f"prompt {index}",
                expected=f"at most {context_length} tokens",
                got=f"{len(source)} tokens",
                hint="shorten the document",
            )
        check_ids(source, vocab_size, f"prompt {index}")


def check_source_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context_length: int, target_length: int, vocab_size: int
) -> None:
    """Raise where a pair's source is not as `check_sources` wants it, or its target is longer than the decoder's."""
    check_sources([source for source, _ in pairs], context_length, vocab_size)
    for index, (_, target) in enumerate(pairs):
        if len(target) > target_length:
            raise AssayError(
                "the target is longer than the decoder's context",
                where=f"pair {index}",
                expected=f"at most {target_length} tokens",
                got=f"{len(target)} tokens",
            )
        if target:
            check_ids(target, vocab_size, f"pair {index}")
