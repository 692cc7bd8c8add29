"""The stage: artifacts and examples in; scores, verdicts and a report out."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows
from contract.runtime import GenerateParams
from evalsuite.cache import CACHE_FOLDER, Cache
from evalsuite.environment import environment
from evalsuite.folder import refuse_foreign_folder, refuse_inside, stamp, write_evaluation, writing
from evalsuite.gate import judge, required
from evalsuite.loadable import set_apart, unloadable
from evalsuite.plan import plan
from evalsuite.results import DataInfo, Results, Speed
from evalsuite.rows import row_of, score_visit
from evalsuite.scorer import TaskScorer
from evalsuite.served.ask import ANSWERS
from evalsuite.served.compare import claimed, score_endpoint
from evalsuite.served.endpoint import Endpoint
from evalsuite.speed import measure_speed
from evalsuite.walk import Visit, Walk

if TYPE_CHECKING:
    from contract.recipe import Recipe


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
        examples: with at least one reference each.
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
    data_sha256 = sha256_of_rows(examples)
    cache = Cache(out / CACHE_FOLDER)
    with writing(out), cache.held():
        walk = Walk(examples, data_sha256, recipe.prompt.spec() if recipe else None, params, threads, cache)
        walk.trees(roots)
        faults += walk.faults
        examples = walk.examples
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
            _data(examples, data_sha256, walk.too_long),
            params.max_new_tokens,
            tuple(rows),
            baselines,
            gate.model_dump(mode="json"),
            required(rows, gate if recipe else None, missing),
            scorer.signatures,
            missing,
            params.beyond_greedy(),
        )
        verdicts = judge(results, gate)
        write_evaluation(out, results, verdicts, found)
        stamp(results, verdicts)
        cache.forget(ANSWERS)
        cache.tidy()
    return results


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


def _data(examples: Sequence[Example], sha256: str, too_long: tuple[str, ...]) -> DataInfo:
    """`examples` are those that were judged, `sha256` is of all."""
    count = len(examples)
    return DataInfo(
        sha256,
        count,
        too_long,
        sum(len(example.references[0].split()) for example in examples) / count,
        sum(len(example.document.split()) for example in examples) / count,
    )
