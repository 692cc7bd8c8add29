"""Walks a tree of artifacts: loads each at most once, and encodes, scores and generates with it while it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from contract.artifact_prompt import recorded_prompt
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows
from contract.prompt import PromptSpec
from contract.runtime import Completion, GenerateParams, Runtime
from evalsuite.cache import Cache
from evalsuite.distance import LogitsSpool, TokenDistances, highest_mean_kl, mean_kl, score_against, summarize
from evalsuite.fit import Fit, fit, recorded_context
from evalsuite.identity import added_tokens, base_identity
from evalsuite.interface import compare_interface
from evalsuite.loadable import Fault, Model
from evalsuite.own_targets import chunk_size, write_and_spool
from evalsuite.own_words import Start, start_of, write
from evalsuite.plan import Node
from evalsuite.progress import Progress
from evalsuite.results import Noise, ServedPath, TargetSet
from evalsuite.served_path import (
    SERVED_DOCUMENTS,
    SERVED_KINDS,
    Written,
    pairs_of,
    score_alone,
    spread,
    texts_differ,
    write_alone,
)
from evalsuite.targets import Targets, encode_all, make_targets
from evalsuite.visit import Found, Visit, dtype_of, reference_noise
from runtimes import Dtype, Weights, load_runtime
from runtimes.onnx_provider import onnx_runs_on

NOISE_DOCUMENTS = 32
_MOST_PARALLEL, _PARALLEL_TOKENS = 32, 24_576  # sequences side by side, and about how many tokens that may come to
_CHUNK = 64  # summaries that are written, and kept, together
_TARGET_SETS: tuple[TargetSet, ...] = ("gold", "greedy")


@dataclass(frozen=True)
class _Chunk:
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class _Noises:
    by_target_set: tuple[Noise, ...]


class Walk:
    """One evaluation's examples and settings, and the visits made so far, in the order they were made.

    `trees` leaves out of `examples` those that are too long to be served; `too_long` are their ids.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        data_sha256: str,
        spec: PromptSpec | None,
        params: GenerateParams,
        threads: int,
        cache: Cache,
        *,
        as_served: bool = True,
    ) -> None:
        """`as_served`: run what can be served the way it is served, too."""
        self.examples, self.data_sha256, self.spec, self.threads = examples, data_sha256, spec, threads
        self.params, self.as_served = params, as_served
        self.too_long: tuple[str, ...] = ()
        self.cache, self.progress = cache, Progress()
        self.visits: list[Visit] = []
        self.faults: list[Fault] = []  # of what nothing is compared with
        self.parallel = self._most_parallel()

    def trees(self, roots: Sequence[Node]) -> None:
        """Visit every node, never with two models in memory.

        Raises:
            AssayError: no document fits the context, or what others are compared with cannot be run.
        """
        models = [Model(partial(self._load, root, self._spec(root))) for root in roots]
        self._leave_out(roots, models)
        for root in roots:
            self._expect(root, self._root_key(root))
        for root, model in zip(roots, models, strict=True):
            self._visit(root, self._root_key(root), None, None, model)

    def _leave_out(self, roots: Sequence[Node], models: Sequence[Model]) -> None:
        """What serving any of the artifacts would refuse for its length is judged for none: all see the same."""
        found: list[Fit] = []
        for root, model in zip(roots, models, strict=True):
            try:
                found.append(self._fit(root, model))
            except AssayError as error:
                if not _only_its_own(root, error, model):
                    raise  # else it is said when it is visited
                model.close()
            if len(roots) > 1:
                model.close()
        too_long = {index for one in found for index in one.too_long}
        if not too_long:
            return
        context = min(one.context_length for one in found if one.too_long)
        room = f"prompt and {self.params.max_new_tokens} tokens of summary within a context of {context} tokens"
        if len(too_long) == len(self.examples):
            raise AssayError(
                "no document fits the context, and nothing is cut",
                expected=room,
                got=f"{len(too_long)} documents that do not",
                hint="shorten the documents, lower generate.max_new_tokens, or take a model with a larger context",
            )
        kept = [example for index, example in enumerate(self.examples) if index not in too_long]
        self.too_long = tuple(self.examples[index].id for index in sorted(too_long))
        said = f"{len(too_long)} of {len(self.examples)} documents are too long to be served, so they are not judged"
        self.progress.say(f"{said}: {room} is what fits")
        self.examples, self.data_sha256 = kept, sha256_of_rows(kept)
        self.parallel = self._most_parallel()
        for model in models:
            model.close()  # it is loaded again for those that are left, as if the others had never been there

    def _most_parallel(self) -> int:
        longest_words = max(len(example.document.split()) for example in self.examples)
        return min(_MOST_PARALLEL, max(4, _PARALLEL_TOKENS // (2 * longest_words + self.params.max_new_tokens)))

    def _fit(self, root: Node, model: Model) -> Fit:
        contexts = [length for node in root.all if (length := recorded_context(node.artifact)) is not None]
        key = self.cache.key(root=self._root_key(root), context=min(contexts, default=None))
        known = self.cache.get("fit", key, Fit)
        if known is None:
            runtime = model()
            with model.at_work():
                known = fit(runtime, self._spec(root), self.examples, self.params.max_new_tokens, contexts)
            self.cache.put("fit", key, known)
        return known

    def _root_key(self, root: Node) -> str:
        return self.cache.key(
            data=self.data_sha256,
            prompt=self._spec(root).as_dict(),
            params=asdict(self.params),
            threads=self.threads,
            node=self._identity(root),
        )

    def _child_key(self, child: Node, above: str) -> str:
        prompt = recorded_prompt(child.artifact)
        return self.cache.key(above=above, node=self._identity(child), prompt=prompt and prompt.as_dict())

    def _identity(self, node: Node) -> list[str | None]:
        runs_on = onnx_runs_on() if node.artifact.kind == "onnx" else ()
        return [node.artifact.digest, node.base_weights, base_identity(node.artifact), *runs_on]

    def _expect(self, node: Node, key: str) -> None:
        """Count the work that is not in the cache."""
        served = min(SERVED_DOCUMENTS, len(self.examples)) if self._is_served(node) else 0
        if self.cache.get("node", key, Found) is None:
            self.progress.expect(2 * len(self.examples) * (1 + Progress.ALONE * bool(served)))
        if served:
            if self.cache.get("alone", f"{key}-some-0", _Chunk) is None:
                rest = len(self.examples) - served
                self.progress.expect(served * (Progress.WRITE + Progress.ALONE) + rest * Progress.ALONE)
        elif self._writes(node):
            chunks = -(-len(self.examples) // _CHUNK)
            missing = sum(self.cache.get("summaries", f"{key}-{n}", _Chunk) is None for n in range(chunks))
            self.progress.expect(missing / chunks * len(self.examples) * Progress.WRITE)
        for child in node.children:
            self._expect(child, self._child_key(child, key))

    def _load(
        self,
        node: Node,
        spec: PromptSpec,
        merge_dtype: str | None = None,
        threads: int | None = None,
        parallel: int | None = None,
    ) -> Runtime:
        weights: dict[str | None, Weights] = {"w16": "w16", "nf4": "nf4"}
        dtypes: dict[str | None, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
        return load_runtime(
            node.artifact,
            threads=threads or self.threads,
            base_weights=weights.get(node.base_weights),
            merge_dtype=dtypes.get(merge_dtype),
            parallel=parallel or self.parallel,
            date=spec.date,
        )

    def _load_alone(self, node: Node, spec: PromptSpec) -> Runtime:
        """As `serve.start` loads it."""
        return self._load(node, spec, parallel=1)

    def _visit(
        self, node: Node, key: str, above: Visit | None, reference: LogitsSpool | None, model: Model | None = None
    ) -> None:
        found = self.cache.get("node", key, Found)
        where = f" on {node.base_weights} weights" if node.base_weights else ""
        self.progress.say(f"{node.label}{where}: {'known already' if found else 'scoring …'}")
        # a root is asked as the recipe says; what is held against it says itself how it would be asked
        spec = recorded_prompt(node.artifact) or above.targets.spec if above else self._spec(node)
        model = model or Model(partial(self._load, node, spec))
        alone = Model(partial(self._load_alone, node, spec))
        model.instead_of, alone.instead_of = alone, model
        try:
            targets = above.targets if above else self._targets(node, key, model, alone)
            keep = self._spool(node, key, targets, found.vocab_size if found else model().vocab_size)
            if found is None or (keep is not None and not keep.complete):
                found = self._score(node, key, model, alone, targets, above, reference, keep, found)
            completions, differ = self._completions(node, key, model, alone, targets, found, above)
        except AssayError as error:
            if not _only_its_own(node, error, model, alone):
                raise
            self.progress.say(f"{node.label}: it could not be loaded, or does not run: {error}")
            self.faults.append(Fault(node.artifact, error, node.label))
            return
        finally:
            model.close()
            alone.close()
        visit = Visit(node, key, above, targets, found, completions, {})
        if found.alone is not None:
            count = len(self._served_documents(node, targets))
            alone_ = found.alone
            visit.served_path = ServedPath(count, differ, alone_.noise, alone_.distances, alone_.not_finite)
        self.visits.append(visit)
        for dtype in sorted({dtype_of(child) for child in _merges(node)}):
            visit.noise[dtype] = self._noise(visit, dtype, keep)
        for child in node.children:
            self._visit(child, self._child_key(child, key), visit, keep)

    def _score(
        self,
        node: Node,
        key: str,
        model: Model,
        alone: Model,
        targets: Targets,
        above: Visit | None,
        reference: LogitsSpool | None,
        keep: LogitsSpool | None,
        found: Found | None,
    ) -> Found:
        """Score all pairs at once, and of what is served some of them once more as it is served."""
        other = reference is not None and reference.vocab_size != model().vocab_size
        references = [reference] if reference is not None and not other else []
        keep = keep if keep is not None and not keep.complete else None
        documents = self._served_documents(node, targets) if found is None and references else ()
        at = pairs_of(documents)
        pairs = targets.pairs
        many = LogitsSpool(
            self.cache.logits_path(f"{key}-many"), model().vocab_size, [len(pairs[index][1]) for index in at]
        )
        if at:
            many.check_room()  # here, where it is not the model's fault
        scored: list[list[TokenDistances]] = []
        try:
            if references or keep is not None:
                step = partial(self.progress.step, node.label)
                with model.at_work():
                    some = (many, frozenset(at)) if at else None
                    scored = score_against(model(), pairs, references, keep, some=some, step=step)
            if found is None:
                with model.at_work():
                    found = self._found(node, model(), targets, reference, scored)
                if reference is not None and documents and found.distances:
                    noise = reference_noise(above)
                    found = self._score_alone(
                        node, key, model, alone, targets, documents, noise, reference, many, scored[0], found
                    )
                self.cache.put("node", key, found)
        finally:
            many.remove()
        return found

    def _score_alone(
        self,
        node: Node,
        key: str,
        model: Model,
        alone: Model,
        targets: Targets,
        documents: Sequence[int],
        noise: Mapping[TargetSet, float],
        reference: LogitsSpool,
        many: LogitsSpool,
        scored: Sequence[TokenDistances],
        found: Found,
    ) -> Found:
        prompts = [found.prompts[index] for index in documents]
        starts = [found.starts[index] for index in documents]
        some = self._write(node, f"{key}-some", model, prompts, starts)  # while the model is there
        written = Written(found.prompts[: len(self.examples)], some)
        self.progress.say(f"{node.label}: {len(documents)} documents one at a time, as it is served …")
        runtime = alone()
        step = partial(self.progress.step, node.label, Progress.ALONE)
        with alone.at_work():
            alone_ = score_alone(
                runtime, targets.pairs, documents, self.params, reference, many, scored, noise, step, written
            )
        rest = [index for index in range(len(self.examples)) if index not in documents]
        for which, indices in (("some", documents), ("rest", rest)):
            if indices and all(index in written.alone for index in indices) and not alone_.not_finite:
                asked = [found.prompts[index] for index in indices]
                self._keep_written(f"{key}-{which}", asked, [written.alone[index] for index in indices])
        if not alone_.distances:
            self.progress.expect(-2 * (len(self.examples) - len(documents)) * Progress.ALONE)
        return replace(found, alone=alone_)

    def _keep_written(self, key: str, prompts: Sequence[tuple[int, ...]], completions: Sequence[Completion]) -> None:
        """As `_write` would, had it written them alone."""
        for number, indices in enumerate(_chunks(prompts)):
            self.cache.put("alone", f"{key}-{number}", _Chunk(tuple(completions[index] for index in indices)))

    def _is_served(self, node: Node) -> bool:
        """Is it judged the way it is served?"""
        return self.as_served and node.artifact.kind in SERVED_KINDS and node.purpose == "quantization"

    def _served_documents(self, node: Node, targets: Targets) -> tuple[int, ...]:
        return spread(targets.prompts[: len(self.examples)]) if self._is_served(node) else ()

    def _targets(self, root: Node, key: str, model: Model, alone: Model) -> Targets:
        targets = self.cache.get("targets", key, Targets)
        if targets is None:
            write = partial(self._write_targets, root, key, model, alone)
            targets = make_targets(model(), self._spec(root), self.examples, write, added_tokens(root.artifact))
            self.cache.put("targets", key, targets)
        return targets

    def _write_targets(
        self,
        root: Node,
        key: str,
        model: Model,
        alone: Model,
        prompts: Sequence[tuple[int, ...]],
        golds: Sequence[tuple[int, ...]],
    ) -> tuple[Completion, ...]:
        """The root's own summaries, of what is served as it is served; with them its logits, where something will be

        held against them.
        """
        if self.as_served and root.artifact.kind in SERVED_KINDS:
            return self._write(root, key, alone, prompts, alone=True)
        path = self.cache.logits_path(key)
        shared = root.children and self.params.plain_greedy
        size = chunk_size(model(), golds, self.params.max_new_tokens, path) if shared else 0
        if not size:
            return self._write(root, key, model, prompts)

        def known(number: int) -> tuple[Completion, ...] | None:
            chunk = self.cache.get("own", f"{key}-{size}-{number}", _Chunk)
            return chunk.completions if chunk else None

        def done(number: int, completions: tuple[Completion, ...]) -> None:
            self.cache.put("own", f"{key}-{size}-{number}", _Chunk(completions))
            self.progress.step(root.label, len(completions) * (Progress.WRITE + 2))

        return write_and_spool(model(), prompts, golds, self.params, path, size, known, done)

    def _spool(self, node: Node, key: str, targets: Targets, vocab_size: int) -> LogitsSpool | None:
        """Where this node's logits are kept, if something below it still has to be held against them."""
        wanted = any(self.cache.get("node", self._child_key(child, key), Found) is None for child in node.children)
        wanted |= any(self.cache.get("noise", f"{key}-{dtype_of(child)}", _Noises) is None for child in _merges(node))
        path = self.cache.logits_path(key) if node.children else None
        if path is None or not wanted:
            return None
        return LogitsSpool(path, vocab_size, [len(target) for _, target in targets.pairs])

    def _found(
        self,
        node: Node,
        runtime: Runtime,
        targets: Targets,
        reference: LogitsSpool | None,
        scored: Sequence[Sequence[TokenDistances]],
    ) -> Found:
        by_set = {name: scored[0][index::2] if scored else [] for index, name in enumerate(_TARGET_SETS)}
        not_finite = sum(document.not_finite for documents in by_set.values() for document in documents)
        distances = tuple(
            summarize(name, documents) for name, documents in by_set.items() if documents and not not_finite
        )
        texts = (*targets.documents, *targets.hard_texts)
        prompts = encode_all(runtime, recorded_prompt(node.artifact) or targets.spec, texts)
        other = reference is not None and reference.vocab_size != runtime.vocab_size
        starts = self._starts(runtime, targets, prompts, by_set["greedy"]) if not not_finite else ()
        return Found(
            runtime.engine,
            runtime.vocab_size,
            prompts,
            compare_interface(runtime, prompts, targets),
            distances,
            not_finite,
            (reference.vocab_size, runtime.vocab_size) if reference is not None and other else None,
            starts,
        )

    def _starts(
        self,
        runtime: Runtime,
        targets: Targets,
        prompts: Sequence[tuple[int, ...]],
        greedy: Sequence[TokenDistances],
    ) -> tuple[Start, ...]:
        """How its own summaries begin, where its prompts are those that were scored."""
        return tuple(
            start_of(
                target,
                document,
                runtime.stop_ids,
                self.params.max_new_tokens,
                goes_on=runtime.target_length is None and not getattr(runtime, "token_by_token", False),
            )
            if ours == theirs and self.params.plain_greedy
            else Start((), None)
            for ours, theirs, (_, target), document in zip(prompts, targets.prompts, targets.pairs[1::2], greedy)  # noqa: B905 - hard texts have no target
        )

    def _spec(self, root: Node) -> PromptSpec:
        """The recipe's words, or those the tree's artifacts were made for."""
        recorded = (recorded_prompt(node.artifact) for node in root.all)
        return self.spec or next((spec for spec in recorded if spec is not None), PromptSpec())

    def _writes(self, node: Node) -> bool:
        """Are its summaries wanted? Not of what only stands between, unless something is compared with them."""
        return node.is_row or any(child.purpose == "quantization" for child in node.children)

    def _completions(
        self, node: Node, key: str, model: Model, alone: Model, targets: Targets, found: Found, above: Visit | None
    ) -> tuple[tuple[Completion, ...] | None, int | None]:
        """Summaries by its own prompts; of a model whose logits are not finite, nothing.

        Of what is served some are written both ways. Where one differs, all are written as the server writes them.

        Returns:
            The summaries, and how many differ; None where that was not looked at.
        """
        if above is None:
            return targets.greedy, None
        if not self._writes(node):
            return None, None
        prompts = found.prompts[: len(self.examples)]
        if found.not_finite_tokens or (found.alone is not None and found.alone.not_finite):
            return tuple(Completion((), "", "length", len(prompt), 0.0, 0.0) for prompt in prompts), None
        if found.alone is None:
            return self._write(node, key, model, prompts, found.starts), None
        some = self._served_documents(node, targets)
        rest = [index for index in range(len(prompts)) if index not in some]

        def written(which: str, indices: Sequence[int], *, alone_: bool) -> tuple[Completion, ...]:
            asked, known = [prompts[index] for index in indices], [found.starts[index] for index in indices]
            return self._write(node, f"{key}-{which}", alone if alone_ else model, asked, known, alone=alone_)

        many, one_by_one = written("some", some, alone_=False), written("some", some, alone_=True)
        differ = texts_differ(one_by_one, many)
        if not differ:
            self.progress.expect(len(rest) * (Progress.WRITE - Progress.ALONE))
        done = dict(zip((*some, *rest), (*one_by_one, *written("rest", rest, alone_=differ > 0)), strict=True))
        return tuple(done[index] for index in range(len(prompts))), differ

    def _write(
        self,
        node: Node,
        key: str,
        model: Model,
        prompts: Sequence[tuple[int, ...]],
        starts: Sequence[Start] = (),
        *,
        alone: bool = False,
    ) -> tuple[Completion, ...]:
        """Completions in the order of the prompts, written and kept a chunk at a time, prompts of like length together.

        Nothing of it depends on the chunks, but which neighbours a prompt is batched with. `alone`: one by one, as the
        server writes them, and nothing is taken from `starts`.
        """
        kind = "alone" if alone else "summaries"
        starts = starts or [Start((), None)] * len(prompts)
        completions: dict[int, Completion] = {}
        for number, indices in enumerate(_chunks(prompts)):
            chunk = self.cache.get(kind, f"{key}-{number}", _Chunk)
            if chunk is None:
                asked, known = [prompts[index] for index in indices], [starts[index] for index in indices]
                runtime = model()
                with model.at_work():
                    if alone:
                        step = partial(self.progress.step, node.label, Progress.ALONE)
                        made = write_alone(runtime, asked, self.params, step)
                    else:
                        made = write(runtime, asked, known, self.params)
                        self.progress.step(node.label, len(indices) * Progress.WRITE)
                chunk = _Chunk(tuple(made))
                self.cache.put(kind, f"{key}-{number}", chunk)
            completions |= dict(zip(indices, chunk.completions, strict=True))
        return tuple(completions[index] for index in range(len(prompts)))

    def _noise(self, visit: Visit, dtype: str, spool: LogitsSpool | None) -> tuple[Noise, ...]:
        """What a merge of this node is held against: the instrument's own noise, and what rounding alone costs.

        Noise: the node against itself, one sequence at a time instead of many, in the opposite order, on another number
        of threads. Rounding: PEFT's own merge in float32 against the same, rounded to `dtype`.
        """
        kept = self.cache.get("noise", f"{visit.key}-{dtype}", _Noises)
        if kept is not None:
            return kept.by_target_set
        assert spool is not None
        count = 2 * min(NOISE_DOCUMENTS, len(self.examples))
        self.progress.say(f"{visit.node.label}: measurement noise, and what rounding to {dtype} costs by itself …")
        backwards = list(range(count))[::-1]
        pairs = visit.targets.pairs[:count]
        model = self._load(visit.node, visit.targets.spec, threads=1 if self.threads > 1 else 2)
        try:
            [again] = score_against(model, pairs[::-1], [spool], batch=1, documents=backwards)
        finally:
            model.close()
        rounding = self._rounding(visit, dtype, pairs)
        noise = tuple(
            Noise(
                name,
                count // 2,
                mean_kl(again[1 - index :: 2]),
                mean_kl(rounding[index::2]),
                dtype,
                highest_mean_kl(rounding[index::2]),
            )
            for index, name in enumerate(_TARGET_SETS)
        )
        self.cache.put("noise", f"{visit.key}-{dtype}", _Noises(noise))
        return noise

    def _rounding(
        self, visit: Visit, dtype: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[TokenDistances]:
        if dtype == "float32":
            return []
        path = self.cache.logits_path(f"{visit.key}-rounding")
        spool = LogitsSpool(path, visit.found.vocab_size, [len(target) for _, target in pairs])
        try:
            exact = self._load(visit.node, visit.targets.spec, "float32")
            try:
                score_against(exact, pairs, [], spool)
            finally:
                exact.close()
            rounded = self._load(visit.node, visit.targets.spec, dtype)
            try:
                return score_against(rounded, pairs, [spool])[0]
            finally:
                rounded.close()
        finally:
            spool.remove()


def _chunks(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which prompts are written, and kept, together: those of like length."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    return [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]


def _merges(node: Node) -> list[Node]:
    return [child for child in node.children if child.purpose == "merge_fidelity"]


def _only_its_own(node: Node, error: AssayError, *models: Model) -> bool:
    """Is it the fault of an artifact that nothing is compared with? It fails, and the others are still judged."""
    own = any(error is model.fault for model in models)
    return own and not node.children and node.role == "candidate"
