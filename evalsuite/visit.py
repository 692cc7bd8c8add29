"""What a walk keeps of each artifact that it visits, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from contract.runtime import Completion
from evalsuite.identity import stored_dtype
from evalsuite.interface import Interface
from evalsuite.own_words import Start
from evalsuite.plan import Node
from evalsuite.results import Distance, Noise, ServedPath, TargetSet
from evalsuite.served_path import Alone
from evalsuite.targets import Targets


@dataclass(frozen=True)
class Found:
    """What is kept of a node, but for its summaries."""

    engine: str
    vocab_size: int
    prompts: tuple[tuple[int, ...], ...]  # by its own tokenizer and template
    interface: Interface
    distances: tuple[Distance, ...]
    not_finite_tokens: int
    vocabulary: tuple[int, int] | None
    starts: tuple[Start, ...]  # of its own summaries, by document; empty: nothing is known of them
    alone: Alone | None = None  # of what is served: one at a time beside many at once


@dataclass
class Visit:
    """What was found of one node.

    `noise` is what a merge of it is held against, by dtype; `served_path` what serving it differs by, where it is
    served and compared.
    """

    node: Node
    key: str
    above: Visit | None
    targets: Targets
    found: Found
    completions: tuple[Completion, ...] | None
    noise: dict[str, tuple[Noise, ...]]
    served_path: ServedPath | None = None

    @property
    def engine(self) -> str:
        """What ran it."""
        return self.found.engine

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """By its own tokenizer and template: of the documents, then of the hard texts."""
        return self.found.prompts


def dtype_of(merged: Node) -> str:
    """What a merged model is stored in, as torch names it."""
    return stored_dtype(merged.artifact)


def noise_of(visit: Visit) -> tuple[Noise, ...]:
    """What the merge that this visit was of is held against."""
    return visit.above.noise[dtype_of(visit.node)] if visit.above and visit.node.purpose == "merge_fidelity" else ()


def served_path_of(visit: Visit) -> ServedPath | None:
    """What serving it differs by, where that counts: of an export beside what it was made from."""
    return visit.served_path if visit.node.purpose == "quantization" else None


def reference_noise(reference: Visit | None) -> dict[TargetSet, float]:
    """Of what an export is compared with, or, where that is a merge, of the adapter it was held against; nats."""
    if reference is None:
        return {}
    measured = next(iter(reference.noise.values()), None) or noise_of(reference)
    return {noise.target_set: noise.self_noise_kl for noise in measured}
