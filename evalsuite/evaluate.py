"""The stage: artifacts and examples in; scores, verdicts and a report out."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact
from contract.artifact_prompt import recorded_prompt
from contract.errors import AssayError, listed
from contract.example import Example, key_of, sha256_of_rows
from contract.groups import group, row_count
from contract.history import Evaluation
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from contract.similarity import near_duplicates
from contract.verdict import Basis
from evalsuite.cache import CACHE_FOLDER, Cache
from evalsuite.environment import environment
from evalsuite.folder import refuse_foreign_folder, refuse_inside, writing
from evalsuite.gate import required
from evalsuite.kept import Kept, settle
from evalsuite.loadable import set_apart, unloadable
from evalsuite.plan import Node, plan
from evalsuite.results import DataInfo, NearDuplicate, Results, Speed
from evalsuite.rows import row_of, score_visit
from evalsuite.scorer import TaskScorer
from evalsuite.served.ask import ANSWERS
from evalsuite.served.compare import claimed, endpoint_digest, score_endpoint
from evalsuite.served.endpoint import Endpoint
from evalsuite.speed import measure_speed
from evalsuite.walk import Visit, Walk

if TYPE_CHECKING:
    from contract.limits import GatePart
    from contract.recipe import Recipe

_NEAREST = 20  # near-duplicates that are named


def evaluate(
    artifacts: Sequence[Artifact],
    examples: Sequence[Example],
    out: Path,
    *,
    reference: Artifact | None = None,
    base: Artifact | None = None,
    recipe: Recipe | None = None,
    threads: int = 2,
    speed: bool = True,
    endpoint: Endpoint | None = None,
) -> Results:
    """Score artifacts against each other on the same examples, judge them, and write it all down.

    Args:
        artifacts: what is asked about; what they were made from is found by their manifests.
        examples: with at least one reference each; those of one document are scored as one, against all references.
        out: the evaluation folder; an earlier evaluation in it is replaced.
        reference: what artifacts without lineage are compared with.
        base: the model before fine-tuning, to show whether training helped.
        recipe: its prompt, limits and length; without one, what the artifacts recorded, and default limits.
        threads: CPU threads.
        speed: measure latency and memory, each artifact in a process of its own.
        endpoint: what serves one of the artifacts: scored beside it, and must pass.

    Returns:
        What was found; verdicts are in out/verdict.json and beside each artifact that Assay made.

    Raises:
        AssayError: what others are compared with is not intact or cannot be run, or `out` is something else. Any other
            artifact that cannot be loaded fails by itself.
    """
    from contract.limits import GatePart

    refuse_foreign_folder(out)
    refuse_inside(out, [artifact for artifact in (*artifacts, reference, base) if artifact is not None])
    if not artifacts or not examples:
        raise AssayError("there is nothing to evaluate", got=f"{len(artifacts)} artifacts, {len(examples)} examples")
    gate = recipe.gate if recipe else GatePart()
    params = recipe.generate.params() if recipe else _recorded_params(artifacts)
    served = claimed(endpoint, artifacts, reference) if endpoint else None
    sound, faults = set_apart(artifacts, [artifact for artifact in (reference, base, served) if artifact is not None])
    roots = plan(sound, reference, base, served)
    examples = group(examples)
    near = _near_duplicates(examples)
    data_sha256 = sha256_of_rows(examples)
    cache = Cache(out / CACHE_FOLDER)
    nodes = [node for root in roots for node in root.all if node.is_row]
    kept = Kept(out, [*(node.artifact for node in nodes), *(fault.artifact for fault in faults)])
    evaluation = Evaluation(
        _basis(examples, data_sha256, gate, params, recipe.prompt.spec() if recipe else _recorded_words(roots)),
        tuple(
            dict.fromkeys(
                [node.artifact.digest for node in nodes if node.role == "candidate"]
                + [fault.artifact.digest for fault in faults]
                + ([endpoint_digest(endpoint)] if endpoint else [])
            )
        ),
        above={digest: above for root in roots for digest, above in _hangs_from(root, ())},
    )
    with writing(out), cache.held():
        kept.begin(evaluation)
        walk = Walk(examples, data_sha256, recipe.prompt.spec() if recipe else None, params, threads, cache)
        walk.trees(roots)
        faults += walk.faults
        examples = walk.examples
        judged = tuple(sorted(map(key_of, examples)))  # what is too long to be served was not
        evaluation = replace(evaluation, basis=replace(evaluation.basis, documents=judged))
        if served and all(visit.node.artifact.digest != served.digest for visit in walk.visits):
            raise next(fault.error for fault in faults if fault.artifact.digest == served.digest)
        if not walk.visits:
            raise faults[0].error
        visits = [visit for visit in walk.visits if visit.node.is_row]
        visits.sort(key=lambda visit: visit.node.label != "base")  # stable: the base first, then as they were visited
        speeds = {visit.key: _speed(visit, threads, cache) if speed else None for visit in visits}
        print("assay eval · scoring the texts …", file=sys.stderr, flush=True)
        scorer = TaskScorer(examples, threads)
        scored = {visit.key: score_visit(visit, scorer) for visit in walk.visits if visit.completions is not None}
        rows = [row_of(visit, scored, speeds[visit.key]) for visit in visits]
        found = {visit.node.label: scored[visit.key].predictions for visit in visits}
        if endpoint and served:
            local = next(visit for visit in visits if visit.node.artifact.digest == served.digest)
            row, told = score_endpoint(endpoint, local, found[local.node.label], scorer, params.max_new_tokens, cache)
            rows.append(row)
            found[row.label] = told.predictions
        missing = unloadable(faults, found)
        baselines = scorer.baselines()
        print("assay eval · judging and writing …", file=sys.stderr, flush=True)
        results = Results(
            environment(threads),
            _data(examples, data_sha256, walk.too_long, near),
            params.max_new_tokens,
            tuple(rows),
            baselines,
            gate.model_dump(mode="json"),
            required(rows, gate if recipe else None, missing),
            scorer.signatures,
            missing,
            params.beyond_greedy(),
        )
        settle(kept, out, results, gate, evaluation, found)
        cache.forget(ANSWERS)
        cache.tidy()
    return results


def _basis(
    examples: Sequence[Example], data_sha256: str, gate: GatePart, params: GenerateParams, spec: PromptSpec
) -> Basis:
    """What the verdicts will rest on; `spec` are the words for artifacts that record none of their own."""
    return Basis(
        data_sha256,
        tuple(sorted(map(key_of, examples))),
        gate.model_dump(mode="json", exclude={"require"}),
        {
            "max_new_tokens": params.max_new_tokens,
            **params.beyond_greedy(),
            "prompt": spec.as_dict(),
        },
        environment(1).versions,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _hangs_from(node: Node, above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every candidate of a tree with the digests of all that it is compared with, directly or not."""
    if node.role == "candidate" and node.is_row:
        yield node.artifact.digest, tuple(dict.fromkeys(above))
    for child in node.children:
        yield from _hangs_from(child, (node.artifact.digest, *above))


def _recorded_words(roots: Sequence[Node]) -> PromptSpec:
    """The words that artifacts are asked in which record none: the first that one of their tree records, else defaults.

    Raises:
        AssayError: such artifacts of several trees would be asked in different words, and one evaluation says one.
    """
    words = []
    for root in roots:
        recorded = [recorded_prompt(node.artifact) for node in root.all]
        spec = next((spec for spec in recorded if spec is not None), PromptSpec())
        words += [spec for own in recorded if own is None]
    if len(set(words)) > 1:
        raise AssayError(
            "artifacts that record no prompt would be asked in different words",
            got=f"{words[0].user!r} and others",
            hint="evaluate them apart, or give a recipe whose prompt says which",
        )
    return words[0] if words else PromptSpec()


def _recorded_params(artifacts: Sequence[Artifact]) -> GenerateParams:
    """How the artifacts say that their summaries are written; of several lengths the longest.

    Raises:
        AssayError: they differ in more than the length, so that some would not be judged as they are served.
    """
    recorded = [GenerateParams.recorded(artifact.details) for artifact in artifacts if "generate" in artifact.details]
    params = max(recorded, key=lambda one: one.max_new_tokens, default=GenerateParams())
    others = [one for one in recorded if replace(one, max_new_tokens=params.max_new_tokens) != params]
    if others:
        raise AssayError(
            "the artifacts record different ways to write summaries, and all are judged by one",
            expected=str(params),
            got=str(others[0]),
            hint="evaluate them apart, or give a recipe whose generate says which",
        )
    return params


def _speed(visit: Visit, threads: int, cache: Cache) -> Speed | None:
    """None, and a word on stderr, where the artifact cannot generate at all."""
    label = visit.node.label
    prompts = visit.prompts[: len(visit.targets.documents)]
    key = cache.key(node=visit.key, machine=platform.node(), threads=threads)
    known = cache.get("speed", key, Speed)
    if known is not None:
        return known
    print(f"assay eval · {label}: latency and memory …", file=sys.stderr, flush=True)
    try:
        found = measure_speed(visit.node.artifact, prompts, threads)
    except AssayError as error:
        print(f"assay eval · {label}: no speed: {error}", file=sys.stderr, flush=True)
        return None
    cache.put("speed", key, found)
    return found


def _near_duplicates(examples: Sequence[Example]) -> list[NearDuplicate]:
    """The documents that are nearly an earlier one, the most alike first; a word on stderr where there are some."""
    found = [
        NearDuplicate(examples[index].id, examples[other].id, round(jaccard, 4))
        for index, other, jaccard in near_duplicates(example.document for example in examples)
    ]
    found.sort(key=lambda near: -near.jaccard)  # stable: of equals the first
    if found:
        print(
            f"assay eval · note: {len(found)} of {len(examples)} documents are nearly another one: "
            + listed(f"{near.id} (as {near.other_id}, {near.jaccard:.2f})" for near in found),
            file=sys.stderr,
            flush=True,
        )
    return found


def _data(
    examples: Sequence[Example], sha256: str, too_long: tuple[str, ...], near: Sequence[NearDuplicate]
) -> DataInfo:
    """`examples` are those that were judged, `sha256` is of all."""
    count = len(examples)
    return DataInfo(
        sha256,
        count,
        too_long,
        sum(len(example.references[0].split()) for example in examples) / count,
        sum(len(example.document.split()) for example in examples) / count,
        row_count(examples),
        len(near),
        tuple(near[:_NEAREST]),
    )
