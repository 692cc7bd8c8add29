"""A reference writes its own summaries, and its logits on them and on the gold ones are spooled at the same time.

What it chose each token from are the teacher-forced logits of what it wrote, so only the gold summaries are left to be
scored, behind prompts that have just been computed. Without this every prompt is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.runtime import Completion, GenerateParams, Runtime, WritesAndScores
from evalsuite.distance import Pair, room_for, spooled

if TYPE_CHECKING:
    import numpy as np

CHUNK = 128  # documents that are written, and kept, together
_HELD_BYTES = 1 << 30  # logits of a chunk, in memory
_FEWEST = 16  # documents: with fewer side by side, writing loses more than sharing prompts gains

Ids = Sequence[int]
Known = Callable[[int], tuple[Completion, ...] | None]  # number of a chunk -> its completions, if it is done already
Done = Callable[[int, tuple[Completion, ...]], None]


def chunk_size(runtime: Runtime, golds: Sequence[Ids], most_tokens: int, path: Path) -> int:
    """Documents per chunk; 0 where it does not pay or cannot be done, and writing and scoring go separate ways.

    Args:
        runtime: the reference.
        golds: target ids, one per document.
        most_tokens: no summary is longer.
        path: where the logits go.
    """
    if not isinstance(runtime, WritesAndScores) or not runtime.shares_prompts:
        return 0
    row_bytes = 4 * runtime.vocab_size
    size_bytes = sum(len(gold) + most_tokens for gold in golds) * row_bytes
    fits = _HELD_BYTES // ((max(map(len, golds)) + most_tokens) * row_bytes)
    if fits < min(_FEWEST, len(golds)) or not room_for(size_bytes, path):
        return 0
    chunks = -(-len(golds) // min(CHUNK, fits))
    return -(-len(golds) // chunks)  # of like size: a last one of a few documents would gain little by its company


def write_and_spool(
    runtime: Runtime,
    prompts: Sequence[Ids],
    golds: Sequence[Ids],
    params: GenerateParams,
    path: Path,
    size: int,
    known: Known,
    done: Done,
) -> tuple[Completion, ...]:
    """The completions of `prompts`; the logits of gold and completion of every document, in order, in `path`.

    Args:
        runtime: the reference.
        prompts: ids.
        golds: target ids, one per prompt.
        params: greedy.
        path: float32, for each document [len(gold), vocab_size] and [len(completion and its stop id), vocab_size].
        size: documents per chunk, from `chunk_size`.
        known: asked for every chunk before it is made.
        done: told of every chunk that was made.
    """
    completions: list[Completion] = []

    def blocks() -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, len(prompts), size)):
            part = slice(start, start + size)
            made = known(number)
            if made is not None:
                yield from runtime.score(greedy_pairs(prompts[part], golds[part], made))
            else:
                assert isinstance(runtime, WritesAndScores)
                written: dict[int, Completion] = {}
                waiting: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # for a document before them
                for index, completion, gold, own in runtime.write_and_score(prompts[part], golds[part], params):
                    written[index], waiting[index] = completion, (gold, own)
                    while (turn := len(written) - len(waiting)) in waiting:
                        yield from waiting.pop(turn)
                made = tuple(written[index] for index in sorted(written))
                done(number, made)
            completions.extend(made)

    for _ in spooled(path, blocks()):
        pass
    return tuple(completions)


def greedy_pairs(prompts: Sequence[Ids], golds: Sequence[Ids], completions: Sequence[Completion]) -> list[Pair]:
    """Gold, greedy of document 0, gold, greedy of document 1, …: neighbours share a prompt.

    A greedy target ends with the id that closes the gold one where the reference ended by itself.
    """
    pairs: list[Pair] = []
    for prompt, gold, completion in zip(prompts, golds, completions, strict=True):
        closing = gold[-1:] if completion.stop == "eos" else ()
        pairs += [(prompt, gold), (prompt, (*completion.ids, *closing))]
    return pairs
