"""An export the way `assay serve` runs it, one text at a time and token by token, beside many at once.

Engines compute one column by other kernels than many, and the server never has more than one. So some documents, of
all lengths, are written and scored as the server would write them. What the two ways differ by is noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contract.runtime import Completion, GenerateParams, Runtime, ScoresAsWritten
from evalsuite.distance import LogitsSpool, Pair, TokenDistances, mean_kl, summarize, token_distances
from evalsuite.results import PathNoise, TargetSet

SERVED_KINDS = ("gguf", "onnx")  # of artifacts that `assay serve` takes
SERVED_DOCUMENTS = 32


def spread(prompts: Sequence[Sequence[int]], most: int = SERVED_DOCUMENTS) -> tuple[int, ...]:
    """Which documents: at most `most`, evenly spaced by the length of their prompts, the shortest and longest included.

    Returns:
        Indices, in the order of the data; the same for the same prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    count = min(most, len(order))
    steps = max(1, count - 1)
    return tuple(sorted(order[(at * (len(order) - 1)) // steps] for at in range(count)))


def pairs_of(documents: Sequence[int]) -> list[int]:
    """Where the gold and greedy pairs of some documents stand among those of all."""
    return [2 * document + which for document in documents for which in (0, 1)]


def write_alone(
    runtime: Runtime, prompts: Sequence[Sequence[int]], params: GenerateParams, step: Callable[[], None]
) -> list[Completion]:
    """What the server answers, one prompt after the other; `step` is called after each."""
    written = []
    for prompt in prompts:
        *_, completion = runtime.stream(prompt, params)
        assert isinstance(completion, Completion)
        written.append(completion)
        step()
    return written


def texts_differ(ours: Sequence[Completion], theirs: Sequence[Completion]) -> int:
    """How many have other tokens, or another end."""
    return sum((a.ids, a.stop) != (b.ids, b.stop) for a, b in zip(ours, theirs, strict=True))


def score_alone(
    runtime: Runtime,
    pairs: Sequence[Pair],
    at: Sequence[int],
    params: GenerateParams,
    reference: LogitsSpool,
    many: LogitsSpool,
    scored: Sequence[TokenDistances],
    step: Callable[[], None],
) -> tuple[tuple[PathNoise, ...], int]:
    """Score some pairs as the server would write them, and hold that against the reference and against many at once.

    Args:
        runtime: the artifact as the server loads it.
        pairs: of all documents, gold and greedy in turn.
        at: which of them, from `pairs_of`.
        params: how the server generates.
        reference: the reference's logits, of all pairs.
        many: the artifact's own as they came many at once, of the pairs `at` only.
        scored: these against the reference, of all pairs.
        step: called for every pair that is done.

    Returns:
        Gold and greedy; and how many tokens have a logit that is not finite: if any, no figures.
    """
    import numpy as np

    assert isinstance(runtime, ScoresAsWritten), "what is served can be scored as it is written"
    served: tuple[list[TokenDistances], ...] = ([], [])
    between: tuple[list[TokenDistances], ...] = ([], [])
    largest = [0.0, 0.0]
    logits = runtime.score_as_written([pairs[index] for index in at], params)
    for number, (index, block) in enumerate(zip(at, logits, strict=True)):
        other, target, which = many.read(number), pairs[index][1], index % 2
        served[which].append(token_distances(reference.read(index), block, target))
        between[which].append(token_distances(other, block, target))
        if block.size:
            with np.errstate(invalid="ignore"):
                largest[which] = max(largest[which], float(np.abs(block - other).max()))
        step()
    not_finite = sum(document.not_finite for documents in served for document in documents)
    if not_finite:
        return (), not_finite
    names: tuple[TargetSet, TargetSet] = ("gold", "greedy")
    return tuple(
        PathNoise(
            name,
            summarize(name, served[which]),
            summarize(name, [scored[index] for index in at if index % 2 == which]),
            mean_kl(between[which]),
            largest[which],
        )
        for which, name in enumerate(names)
    ), 0
