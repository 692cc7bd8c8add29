"""The summary an artifact writes by itself, as far as scoring it has shown already.

Scoring the reference's own greedy summary gives the artifact's first choice at each of its tokens. As long as the two
agree, that is just what the artifact would have written; only from where they part must it be asked. A faithful copy
so writes most of its summaries for nothing. (It is how speculative decoding accepts a draft: Leviathan et al. 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract.runtime import Completion, GenerateParams, Runtime
from evalsuite.distance import TokenDistances


@dataclass(frozen=True)
class Start:
    """How an artifact's own summary begins.

    `ids` are its first tokens. `stop` says why it ended there, None where it goes on.
    """

    ids: tuple[int, ...]
    stop: str | None


def start_of(
    target: Sequence[int], scored: TokenDistances, stop_ids: frozenset[int], most_tokens: int, *, goes_on: bool = True
) -> Start:
    """What the artifact writes, from its first choices along the reference's greedy summary.

    Args:
        target: the reference's summary, its closing id included where it ended by itself.
        scored: the artifact along `target`; its `top` are first choices, one per token.
        stop_ids: what ends the artifact's generation.
        most_tokens: no summary is longer.
        goes_on: can what has begun be put behind the prompt and gone on with? Not with an encoder, and there the first
            token may be forced, so that only a whole summary is known; nor where reading it at once gives other logits
            than writing it did (activations quantized as it runs).
    """
    start = _start(target, scored, stop_ids, most_tokens)
    return start if goes_on or (start.ids and start.stop == "eos") else Start((), None)


def _start(target: Sequence[int], scored: TokenDistances, stop_ids: frozenset[int], most_tokens: int) -> Start:
    ids: list[int] = []
    for expected, own in zip(target, scored.top, strict=True):
        own = int(own)
        if own in stop_ids:
            return Start(tuple(ids), "eos")
        ids.append(own)
        if len(ids) == most_tokens:
            return Start(tuple(ids), "length")
        if own != expected:
            break
    return Start(tuple(ids), None)


def write(
    runtime: Runtime, prompts: Sequence[Sequence[int]], starts: Sequence[Start], params: GenerateParams
) -> list[Completion]:
    """The summaries of `prompts`, of which `starts` are known: the same as `runtime.generate` would write.

    Args:
        runtime: the artifact.
        prompts: prompt ids.
        starts: one per prompt.
        params: without stop strings; plain greedy where any start is known.
    """
    open_ends = [index for index, start in enumerate(starts) if start.stop is None]
    longest = params.max_new_tokens - min((len(starts[index].ids) for index in open_ends), default=0)
    rest = runtime.generate(
        [[*prompts[index], *starts[index].ids] for index in open_ends], replace(params, max_new_tokens=max(1, longest))
    )
    written = dict(zip(open_ends, rest, strict=True))
    return [
        _whole(runtime, prompt, start, written.get(index), params.max_new_tokens)
        for index, (prompt, start) in enumerate(zip(prompts, starts, strict=True))
    ]


def _whole(
    runtime: Runtime, prompt: Sequence[int], start: Start, rest: Completion | None, most_tokens: int
) -> Completion:
    if not start.ids and rest is not None:
        return rest
    ids = (*start.ids, *(rest.ids if rest else ()))
    ended = (rest.stop if rest else start.stop) == "eos" and len(ids) < most_tokens
    ids = ids[:most_tokens]
    return Completion(ids, runtime.decode(ids), "eos" if ended else "length", len(prompt), 0.0, 0.0)
