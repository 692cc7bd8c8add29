"""Real runtimes of which one way is damaged: many at once, or one at a time as a server runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from contract.artifact import Artifact
from contract.runtime import Completion, GenerateParams
from runtimes import load_runtime

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


class Passed:
    """All that the runtime inside offers."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def score_as_written(self, pairs: Pairs, params: GenerateParams) -> Iterator[np.ndarray]:
        yield from self.inside.score_as_written(pairs, params)


class Blurred(Passed):
    """Many at once its logits are far off."""

    def score(self, pairs: Pairs) -> Iterator[np.ndarray]:
        for block in self.inside.score(pairs):
            yield block[:, ::-1].copy()


class RuinedLogits(Passed):
    """Alone its logits are far off, though it writes as it should."""

    def score_as_written(self, pairs: Pairs, params: GenerateParams) -> Iterator[np.ndarray]:
        for block in self.inside.score_as_written(pairs, params):
            yield block[:, ::-1].copy()


class NoNumbers(Passed):
    """Alone some of its logits are not numbers."""

    def score_as_written(self, pairs: Pairs, params: GenerateParams) -> Iterator[np.ndarray]:
        for block in self.inside.score_as_written(pairs, params):
            block[-1, 3] = np.nan
            yield block


class NeverEnds(Passed):
    """Alone it writes something else, and does not end."""

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        ids = (7,) * params.max_new_tokens
        yield Completion(ids, self.inside.decode(ids), "length", len(prompt), 0.0, 0.0)


def loading(kind: type[Passed], *, alone: bool, quant: str = "f16") -> Any:
    """A `load_runtime` whose .gguf of that type is damaged, as the server loads it (`alone`) or as many are scored."""

    def load(artifact: Artifact, *, parallel: int = 8, **settings: Any) -> Any:
        runtime = load_runtime(artifact, parallel=parallel, **settings)
        damaged = artifact.details.get("quant") == quant and (parallel == 1) == alone
        return kind(runtime) if damaged else runtime

    return load
