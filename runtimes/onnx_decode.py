"""Writing with any decoder that begins, steps and keeps rows: greedy or sampled answers, and beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from runtimes.answer import Answer
from runtimes.beam import BeamSearch

_COMPACT_BELOW = 0.75  # share of rows still running under which the finished ones are dropped from the batch


class Decoder(Protocol):
    """Sequences that run through a model together, one per row."""

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> np.ndarray:
        """Read the prompts, with room for `most` tokens each; the first tokens' logits, float32 [rows, vocab_size]."""
        ...

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed one token per row; the next ones' logits, which the next step may overwrite."""
        ...

    def walk(
        self, tokens: Sequence[int], *, ends: np.ndarray, live: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Feed one token per row, and perhaps the likeliest one behind it, and so on.

        Args:
            tokens: one per row.
            ends: int64 [any]; where the likeliest is one of these, it is not fed.
            live: bool [rows], for which that holds; what the others are fed does not matter.
            most: tokens to feed at most, 1 or more.

        Returns:
            The tokens fed behind the first, int64 [any, rows], and the logits behind the last.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, some perhaps several times."""
        ...


def write(decoder: Decoder, answers: Sequence[Answer]) -> Iterator[None]:
    """Give every answer its next token, yield, and again until all are over."""
    for answer in answers:
        answer.start_clock()
    rows = list(answers)
    ends = np.array(sorted(frozenset[int]().union(*(answer.end_ids for answer in rows))) or [-1])
    logits = decoder.begin([answer.prompt for answer in rows], max(answer.most_new_tokens for answer in rows))
    while True:
        tokens = [answer.take(row) if answer.stop is None else 0 for answer, row in zip(rows, logits, strict=True)]
        yield
        running = [row for row, answer in enumerate(rows) if answer.stop is None]
        if not running:
            return
        if len(running) <= _COMPACT_BELOW * len(rows):
            decoder.keep(running)
            rows, tokens = [rows[row] for row in running], [tokens[row] for row in running]
        live = np.array([answer.stop is None for answer in rows])
        most = min(answer.greedy_steps for answer in rows if answer.stop is None)
        fed, logits = decoder.walk(tokens, ends=ends, live=live, most=most)
        for chosen in fed.tolist():
            for answer, token in zip(rows, chosen, strict=True):
                if answer.stop is None:
                    answer.put(token)
            yield


def search(
    decoder: Decoder, prompts: Sequence[Sequence[int]], searches: Sequence[BeamSearch], beams: int, most: int
) -> None:
    """Run the beams of several prompts side by side until every search is over; those that are leave the batch.

    Args:
        decoder: with nothing in it that is still needed.
        prompts: one per search.
        searches: none of them begun.
        beams: rows per search.
        most: new tokens at most, of any search.
    """
    logits = np.repeat(decoder.begin(prompts, most), beams, axis=0)
    decoder.keep([row for row in range(len(prompts)) for _ in range(beams)])
    running = list(searches)
    while True:
        rows, tokens = [], []
        for number, one in enumerate(running):
            first = number * beams
            parents = one.advance(logits[first : first + beams])
            if not one.over:
                rows += [first + parent for parent in parents]
                tokens += one.tokens
        running = [one for one in running if not one.over]
        if not running:
            return
        decoder.keep(rows)
        logits = decoder.step(tokens)
