"""An export the way `assay serve` runs it, one text at a time and token by token, beside many at once.

Engines compute one column by other kernels than many, and the server never has more than one. So some documents, of
all lengths, are written and scored as the server would write them. What the two ways differ by is noise of its own;
where it is more than the reference's, all documents are written or scored so, and these figures are the judged ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from contract.runtime import Completion, GenerateParams, Runtime, ScoresAsWritten
from evalsuite.distance import LogitsSpool, Pair, TokenDistances, mean_kl, summarize, token_distances
from evalsuite.results import Distance, PathNoise, TargetSet

if TYPE_CHECKING:
    import numpy as np

SERVED_KINDS = ("gguf", "onnx")  # of artifacts that `assay serve` takes
SERVED_DOCUMENTS = 32  # at least, where there are as many
KL_FLOOR_NATS = 1e-9  # float32 sums in another order: nothing can be asked to be nearer than this
_TARGET_SETS: tuple[TargetSet, TargetSet] = ("gold", "greedy")


@dataclass(frozen=True)
class Alone:
    """What scoring one at a time found."""

    noise: tuple[PathNoise, ...] = ()  # gold, greedy
    distances: tuple[Distance, ...] = ()  # of all documents, where one of those differs
    not_finite: int = 0  # tokens with a logit that is not finite; then there are no figures


@dataclass
class Written:
    """Summaries of a document are written right after it was scored, while its prompt is still read."""

    prompts: Sequence[Sequence[int]]  # of all documents, by its own tokenizer and template
    many: Sequence[Completion]  # of the documents of `spread`, as they are written many at once
    alone: dict[int, Completion] = field(default_factory=dict)  # filled in: by document, as the server writes them

    def differ(self, documents: Sequence[int]) -> int:
        """How many of these are not what was written many at once."""
        return texts_differ([self.alone[document] for document in documents], self.many)


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


def differs(noise: PathNoise) -> bool:
    """Does the way it is served differ from the other by more than the reference's noise? Nats, on the same documents.

    Either way counts: how far the two are from each other, and how much farther one is from the reference.
    """
    floor = max(KL_FLOOR_NATS, noise.reference_noise_kl or 0.0)
    apart = abs(noise.served.kl.mean - noise.batched.kl.mean)
    return not (noise.kl <= floor and apart <= floor)


def score_alone(
    runtime: Runtime,
    pairs: Sequence[Pair],
    documents: Sequence[int],
    params: GenerateParams,
    reference: LogitsSpool,
    many: LogitsSpool,
    scored: Sequence[TokenDistances],
    reference_noise: Mapping[TargetSet, float],
    step: Callable[[], None],
    written: Written,
) -> Alone:
    """Score some documents as the server would write them, and all of them where that is another thing than before.

    The documents are written as well, and where their texts differ, too, so are all that are scored.

    Args:
        runtime: the artifact as the server loads it.
        pairs: of all documents, gold and greedy in turn.
        documents: the first ones, from `spread`.
        params: how the server generates.
        reference: the reference's logits, of all pairs.
        many: the artifact's own as they came many at once, of these documents' pairs only.
        scored: the artifact's own, many at once, against the reference; of all pairs.
        reference_noise: the reference's own, nats, as far as it was measured.
        step: called for every pair that is done, and every summary.
        written: takes the summaries; unless the figures are finite they are not all there.
    """
    import numpy as np

    served: dict[int, TokenDistances] = {}
    between: dict[int, TokenDistances] = {}
    largest = [0.0, 0.0]
    for number, document in enumerate(documents):
        for which, block in enumerate(_as_written(runtime, pairs, document, params)):
            index = 2 * document + which
            other, target = many.read(2 * number + which), pairs[index][1]
            served[index] = token_distances(reference.read(index), block, target)
            between[index] = token_distances(other, block, target)
            if block.size:
                with np.errstate(invalid="ignore"):
                    largest[which] = max(largest[which], float(np.abs(block - other).max()))
            step()
        if not _not_finite(served):
            [written.alone[document]] = write_alone(runtime, [written.prompts[document]], params, step)
    if not_finite := _not_finite(served):
        return Alone(not_finite=not_finite)
    at = pairs_of(documents)
    noise = tuple(
        PathNoise(
            name,
            summarize(name, [served[index] for index in at if index % 2 == which]),
            summarize(name, [scored[index] for index in at if index % 2 == which]),
            mean_kl([between[index] for index in at if index % 2 == which]),
            largest[which],
            reference_noise.get(name),
        )
        for which, name in enumerate(_TARGET_SETS)
    )
    if not any(map(differs, noise)):
        return Alone(noise)
    all_written = written.differ(documents) > 0
    for document in sorted(set(range(len(pairs) // 2)) - set(documents)):
        for which, block in enumerate(_as_written(runtime, pairs, document, params)):
            index = 2 * document + which
            served[index] = token_distances(reference.read(index), block, pairs[index][1])
            step()
        if all_written and not _not_finite(served):
            [written.alone[document]] = write_alone(runtime, [written.prompts[document]], params, step)
    if not_finite := _not_finite(served):
        return Alone(not_finite=not_finite)
    return Alone(
        noise,
        tuple(
            summarize(name, [served[index] for index in range(which, len(pairs), 2)])
            for which, name in enumerate(_TARGET_SETS)
        ),
    )


def _as_written(runtime: Runtime, pairs: Sequence[Pair], document: int, params: GenerateParams) -> Iterator[np.ndarray]:
    """Gold, then greedy, one right after the other: an engine may keep the prompt that it has read."""
    assert isinstance(runtime, ScoresAsWritten), "what is served can be scored as it is written"
    return runtime.score_as_written(pairs[2 * document : 2 * document + 2], params)


def _not_finite(served: Mapping[int, TokenDistances]) -> int:
    return sum(document.not_finite for document in served.values())
