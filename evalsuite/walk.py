"""Walks a tree of artifacts: loads each once, and encodes, scores and generates with it while it is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.example import Example
from contract.prompt import PromptSpec, has_double_bos
from contract.runtime import Completion, GenerateParams, Runtime
from evalsuite.distance import LogitsSpool, TokenDistances, mean_kl, score_against, summarize
from evalsuite.identity import recorded_prompt, stored_dtype
from evalsuite.plan import Node
from evalsuite.results import Distance, Noise, TargetSet
from evalsuite.targets import Targets, encode_all, make_targets
from runtimes import Dtype, Weights, load_runtime

NOISE_DOCUMENTS = 32
_MOST_PARALLEL, _PARALLEL_TOKENS = 32, 24_576  # sequences side by side, and about how many tokens that may come to
_TARGET_SETS: tuple[TargetSet, ...] = ("gold", "greedy")


@dataclass(frozen=True)
class Interface:
    """What goes into an artifact and what ends it, against the reference at the root of its tree."""

    prompts: int
    prompt_ids_differ: int
    prompt_difference: str | None
    double_bos: int
    stop_ids_missing: tuple[int, ...]
    stop_ids_extra: tuple[int, ...]
    stop_ids_extra_used: int


@dataclass
class Visit:
    """What was found of one node; `noise` is what a merge of it is held against, by dtype."""

    node: Node
    above: Visit | None
    targets: Targets
    engine: str
    prompts: tuple[tuple[int, ...], ...]  # by its own tokenizer and template
    interface: Interface
    distances: tuple[Distance, ...]
    not_finite_tokens: int
    vocabulary: tuple[int, int] | None
    completions: tuple[Completion, ...] | None
    noise: dict[str, tuple[Noise, ...]]


class Walk:
    """One evaluation's examples and settings, and the visits made so far, in the order they were made."""

    def __init__(
        self, examples: Sequence[Example], spec: PromptSpec | None, max_new_tokens: int, threads: int, scratch: Path
    ) -> None:
        self.examples, self.spec, self.threads, self.scratch = examples, spec, threads, scratch
        self.params = GenerateParams(max_new_tokens=max_new_tokens)
        self.visits: list[Visit] = []
        longest_words = max(len(example.document.split()) for example in examples)
        self.parallel = min(_MOST_PARALLEL, max(4, _PARALLEL_TOKENS // (2 * longest_words + max_new_tokens)))

    def tree(self, root: Node) -> None:
        """Visit every node below `root`, never with two models in memory."""
        self._visit(root, None, None)

    def _load(self, node: Node, merge_dtype: str | None = None) -> Runtime:
        weights: dict[str | None, Weights] = {"w16": "w16", "nf4": "nf4"}
        dtypes: dict[str | None, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
        return load_runtime(
            node.artifact,
            threads=self.threads,
            base_weights=weights.get(node.base_weights),
            merge_dtype=dtypes.get(merge_dtype),
            parallel=self.parallel,
        )

    def _visit(self, node: Node, above: Visit | None, reference: LogitsSpool | None) -> None:
        where = f" on {node.base_weights} weights" if node.base_weights else ""
        print(f"assay eval · {node.label}{where}: scoring …", file=sys.stderr, flush=True)
        runtime = self._load(node)
        try:
            targets = (
                above.targets
                if above
                else make_targets(runtime, self._spec(node), self.examples, self.params.max_new_tokens)
            )
            keep = None
            if node.children:
                keep = LogitsSpool(self.scratch / f"{len(self.visits)}.f32", runtime.vocab_size)
            other = reference is not None and reference.vocab_size != runtime.vocab_size
            references = [reference] if reference is not None and not other else []
            scored = score_against(runtime, targets.pairs, references, keep) if references or keep else []
            by_set = {name: scored[0][index::2] if scored else [] for index, name in enumerate(_TARGET_SETS)}
            not_finite = sum(document.not_finite for documents in by_set.values() for document in documents)
            distances = tuple(
                summarize(name, documents) for name, documents in by_set.items() if documents and not not_finite
            )
            prompts = encode_all(runtime, recorded_prompt(node.artifact) or targets.spec, targets.documents)
            visit = Visit(
                node,
                above,
                targets,
                runtime.engine,
                prompts,
                _interface(runtime, prompts, targets),
                distances,
                not_finite,
                (reference.vocab_size, runtime.vocab_size) if reference is not None and other else None,
                self._completions(node, runtime, targets, prompts, bool(not_finite), above),
                {},
            )
            self.visits.append(visit)
            merges = [child for child in node.children if child.purpose == "merge_fidelity"]
            self_noise = self._self_noise(runtime, targets, keep) if merges and keep else ()
        finally:
            runtime.close()
        for dtype in sorted({_dtype(child) for child in merges}):
            visit.noise[dtype] = self._noise(node, targets, dtype, self_noise)
        for child in node.children:
            self._visit(child, visit, keep)
        if keep is not None:
            keep.remove()

    def _spec(self, root: Node) -> PromptSpec:
        """The recipe's words, or those the tree's artifacts were made for."""
        recorded = (recorded_prompt(node.artifact) for node in root.all)
        return self.spec or next((spec for spec in recorded if spec is not None), PromptSpec())

    def _completions(
        self,
        node: Node,
        runtime: Runtime,
        targets: Targets,
        prompts: Sequence[Sequence[int]],
        broken: bool,
        above: Visit | None,
    ) -> tuple[Completion, ...] | None:
        """Summaries by its own prompts; of a model whose logits are not finite, nothing."""
        if above is None:
            return targets.greedy
        if not node.is_row and all(child.purpose != "quantization" for child in node.children):
            return None
        if broken:
            return tuple(
                Completion((), "", "length", len(prompt), 0.0, 0.0) for prompt in prompts[: len(self.examples)]
            )
        return tuple(runtime.generate(prompts[: len(self.examples)], self.params))

    def _self_noise(self, runtime: Runtime, targets: Targets, spool: LogitsSpool) -> tuple[float, ...]:
        """Mean KL per target set of the model against itself, one sequence at a time instead of many."""
        pairs = targets.pairs[: 2 * NOISE_DOCUMENTS]
        found = score_against(runtime, pairs, [spool], batch=1)[0]
        return tuple(mean_kl(found[index::2]) for index in range(2))

    def _noise(self, node: Node, targets: Targets, dtype: str, self_noise: tuple[float, ...]) -> tuple[Noise, ...]:
        """What rounding to `dtype` costs: PEFT's own merge in float32 against the same, rounded."""
        pairs = targets.pairs[: 2 * NOISE_DOCUMENTS]
        rounding: list[list[TokenDistances]] = [[], []]
        if dtype != "float32":
            spool = LogitsSpool(self.scratch / "rounding.f32", 0)
            for merge_dtype in ("float32", dtype):
                runtime = self._load(node, merge_dtype)
                try:
                    if merge_dtype == "float32":
                        spool = LogitsSpool(self.scratch / "rounding.f32", runtime.vocab_size)
                        score_against(runtime, pairs, [], spool)
                    else:
                        found = score_against(runtime, pairs, [spool])[0]
                        rounding = [found[0::2], found[1::2]]
                finally:
                    runtime.close()
            spool.remove()
        return tuple(
            Noise(name, len(pairs) // 2, self_noise[index], mean_kl(rounding[index]), dtype)
            for index, name in enumerate(_TARGET_SETS)
        )


def _dtype(merged: Node) -> str:
    return str(merged.artifact.details.get("dtype") or stored_dtype(merged.artifact))


def noise_of(visit: Visit) -> tuple[Noise, ...]:
    """What the merge that this visit was of is held against."""
    return visit.above.noise[_dtype(visit.node)] if visit.above and visit.node.purpose == "merge_fidelity" else ()


def _interface(runtime: Runtime, prompts: Sequence[tuple[int, ...]], targets: Targets) -> Interface:
    both = list(zip(prompts, targets.prompts, strict=True))
    differ = [index for index, (ours, theirs) in enumerate(both) if ours != theirs]
    first = None
    if differ:
        index = differ[0]
        ours, theirs = both[index]
        shorter = min(len(ours), len(theirs))
        at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
        which = f"document {index + 1}" if index < len(targets.documents) else "a built-in hard text"
        first = (
            f"{which}, at token {at + 1}: {list(ours[at : at + 4])} instead of {list(theirs[at : at + 4])} "
            f"({len(ours)} ids, not {len(theirs)})"
        )
    extra = runtime.stop_ids - targets.stop_ids
    bos_ids = {bos for bos in (runtime.bos_id, targets.bos_id) if bos is not None}
    return Interface(
        len(prompts),
        len(differ),
        first,
        sum(any(has_double_bos(ids, bos) for bos in bos_ids) for ids in prompts),
        tuple(sorted(targets.stop_ids - runtime.stop_ids)),
        tuple(sorted(extra)),
        sum(token in extra for _, target in targets.pairs for token in target[:-1]),
    )
