"""Teacher-forced logits from ONNX graphs: a prompt that several targets share is read once, logits stay bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtimes.onnx_causal import CausalDecoder
from runtimes.onnx_seq2seq import Seq2SeqDecoder

Ids = Sequence[int]
Pair = tuple[Ids, Ids]
ScoreBatch = Callable[[Sequence[Ids], Sequence[tuple[int, Ids]], int], Iterator[np.ndarray]]

_WINDOW_BYTES = 256 << 20  # logits held back at once so that neighbours of like length can share a run
_WINDOW_PAIRS = 32
_RUN_BYTES = 64 << 20  # logits of one run
_PROMPT_TOKENS = 4096  # padded, whose keys and values an encoder-decoder's targets hold together
_COMPACT_BELOW = 0.75  # share of targets not yet at their end under which the others are dropped from the batch


def score_pairs(pairs: Sequence[Pair], vocab_size: int, parallel: int, batch: ScoreBatch) -> Iterator[np.ndarray]:
    """Logits of every pair, in order.

    Args:
        pairs: (prompt ids, target ids); neighbours with the same prompt share it.
        vocab_size: of the model.
        parallel: prompts, and then targets, in a run at most.
        batch: scores some targets, given as (number of its prompt, target ids).

    Returns:
        Per pair float32 [len(target), vocab_size]; row i predicts target[i].
    """
    start = 0
    while start < len(pairs):
        end, size_bytes = start, 0
        while end < len(pairs) and end - start < _WINDOW_PAIRS:
            size_bytes += len(pairs[end][1]) * vocab_size * 4
            if end > start and size_bytes > _WINDOW_BYTES:
                break
            end += 1
        yield from _window(pairs[start:end], parallel, batch)
        start = end


def _window(window: Sequence[Pair], parallel: int, batch: ScoreBatch) -> list[np.ndarray]:
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(window):
        by_prompt.setdefault(tuple(prompt), []).append(index)
    found: dict[int, np.ndarray] = {}
    order = sorted(by_prompt, key=len)
    for start in range(0, len(order), parallel):
        prompts = order[start : start + parallel]
        targets = [(number, index) for number, prompt in enumerate(prompts) for index in by_prompt[prompt]]
        logits = batch(prompts, [(number, window[index][1]) for number, index in targets], parallel)
        found |= {index: rows for (_, index), rows in zip(targets, logits, strict=True)}
    return [found[index] for index in range(len(window))]


def score_causal(
    decoder: CausalDecoder, prompts: Sequence[Ids], targets: Sequence[tuple[int, Ids]], parallel: int
) -> Iterator[np.ndarray]:
    """Read the prompts into the cache, feed each one's last token, as writing does, then all of its target at once.

    So the target is read with a cache that a run with a cache has written.
    """
    longest = max(len(target) for _, target in targets)
    for part in _parts(targets, parallel, decoder.vocab_size):
        numbers = sorted({number for number, _ in part})
        decoder.read([prompts[number] for number in numbers], longest + 1)
        decoder.keep([numbers.index(number) for number, _ in part])
        found = [np.empty((len(target), decoder.vocab_size), np.float32) for _, target in part]
        first = decoder.step([prompts[number][-1] for number, _ in part])
        for rows, values in zip(found, first, strict=True):
            rows[:1] = values
        if longest > 1:
            rest = decoder.extend(_right_padded([target[:-1] for _, target in part]))
            for rows, values in zip(found, rest, strict=True):
                rows[1:] = values[: max(0, len(rows) - 1)]
        yield from found


def score_seq2seq(
    decoder: Seq2SeqDecoder, prompts: Sequence[Ids], targets: Sequence[tuple[int, Ids]], parallel: int
) -> Iterator[np.ndarray]:
    """Encode the prompts, then feed every target token by token: a graph of its own writes all but the first."""
    rows = max(2, _PROMPT_TOKENS // max(map(len, prompts)))  # two, that gold and greedy targets share their prompt
    for part in _parts(targets, min(parallel, rows), decoder.vocab_size):
        yield from _fed(decoder, prompts, part)


def _fed(decoder: Seq2SeqDecoder, prompts: Sequence[Ids], part: Sequence[tuple[int, Ids]]) -> list[np.ndarray]:
    found = [np.empty((len(target), decoder.vocab_size), np.float32) for _, target in part]
    numbers = sorted({number for number, _ in part})
    longest = max(len(target) for _, target in part)
    logits = decoder.begin([prompts[number] for number in numbers], longest)
    running = list(range(len(part)))  # which target each of the decoder's rows is
    rows = [numbers.index(number) for number, _ in part]
    decoder.keep(rows)
    logits = logits[rows]
    for at in range(longest):
        if at:
            left = [row for row, index in enumerate(running) if len(part[index][1]) > at]
            if len(left) <= _COMPACT_BELOW * len(running):
                decoder.keep(left)
                running = [running[row] for row in left]
            logits = decoder.step([part[index][1][at - 1] if at <= len(part[index][1]) else 0 for index in running])
        for index, values in zip(running, logits, strict=True):
            found[index][at : at + 1] = values
    return found


def score_as_written(
    decoder: CausalDecoder | Seq2SeqDecoder, prompts: Sequence[Ids], targets: Sequence[tuple[int, Ids]], parallel: int
) -> Iterator[np.ndarray]:
    """One target at a time and token by token, in the very runs that writing it would take: equal bit for bit."""
    for number, target in targets:
        logits = np.empty((len(target), decoder.vocab_size), np.float32)
        for at in range(len(target)):
            logits[at] = decoder.step(target[at - 1 : at]) if at else decoder.begin([prompts[number]], len(target))
        yield logits


def _parts(targets: Sequence[tuple[int, Ids]], parallel: int, vocab_size: int) -> Iterator[Sequence[tuple[int, Ids]]]:
    """Neighbours whose padded logits stay within `_RUN_BYTES`."""
    longest = max(len(target) for _, target in targets)
    most = max(1, min(parallel, _RUN_BYTES // (4 * vocab_size * max(1, longest))))
    for start in range(0, len(targets), most):
        yield targets[start : start + most]


def _right_padded(rows: Sequence[Ids]) -> np.ndarray:
    """int64 [rows, width]; a causal model cannot see what stands behind."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
    return ids
