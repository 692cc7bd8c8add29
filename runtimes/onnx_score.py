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
    """Read the prompts into the cache, then feed each one's last token and its target behind it."""
    longest = max(len(target) for _, target in targets)
    for part in _parts(targets, parallel, decoder.vocab_size):
        numbers = sorted({number for number, _ in part})
        decoder.read([prompts[number] for number in numbers], longest + 1)
        decoder.keep([numbers.index(number) for number, _ in part])
        fed = [[prompts[number][-1], *target[:-1]] for number, target in part]
        logits = decoder.extend(_right_padded(fed))
        yield from (logits[row, : len(target)].copy() for row, (_, target) in enumerate(part))


def score_seq2seq(
    decoder: Seq2SeqDecoder, start_id: int, prompts: Sequence[Ids], targets: Sequence[tuple[int, Ids]], parallel: int
) -> Iterator[np.ndarray]:
    """Encode the prompts, then run the decoder over its start and each target."""
    hidden, mask = decoder.encode(prompts)
    for part in _parts(targets, parallel, decoder.vocab_size):
        rows = [number for number, _ in part]
        fed = [[start_id, *target[:-1]] for _, target in part]
        logits = decoder.score(_right_padded(fed), hidden[rows], mask[rows])
        yield from (logits[row, : len(target)].copy() for row, (_, target) in enumerate(part))


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
