"""The stage: artifacts and examples in; scores, verdicts and a report out."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows
from evalsuite.cache import CACHE_FOLDER, Cache
from evalsuite.environment import environment
from evalsuite.folder import refuse_foreign_folder, stamp, write_evaluation
from evalsuite.gate import judge, required
from evalsuite.plan import plan
from evalsuite.results import DataInfo, Results, Speed
from evalsuite.rows import row_of, score_visit
from evalsuite.scorer import TaskScorer
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
        AssayError: an artifact is not intact or cannot be run, or `out` is something else.
    """
    from contract.recipe import GatePart

    refuse_foreign_folder(out)
    if not artifacts or not examples:
        raise AssayError("there is nothing to evaluate", got=f"{len(artifacts)} artifacts, {len(examples)} examples")
    for artifact in {a.digest: a for a in (*artifacts, reference, base) if a is not None}.values():
        artifact.verify()
    gate = recipe.gate if recipe else GatePart()
    max_new_tokens = (
        recipe.generate.max_new_tokens
        if recipe
        else max([int(a.details.get("generate", {}).get("max_new_tokens", 0)) for a in artifacts]) or 128
    )
    served = claimed(endpoint, artifacts, reference) if endpoint else None
    roots = plan(artifacts, reference, base, served)
    data_sha256 = sha256_of_rows(examples)
    cache = Cache(out / CACHE_FOLDER)
    with cache.held():
        walk = Walk(examples, data_sha256, recipe.prompt.spec() if recipe else None, max_new_tokens, threads, cache)
        walk.trees(roots)
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
            row, told = score_endpoint(endpoint, local, found[local.node.label], scorer, max_new_tokens)
            rows.append(row)
            found[row.label] = told.predictions
        baselines = scorer.baselines()
        print("assay eval · judging and writing …", file=sys.stderr, flush=True)
        results = Results(
            environment(threads),
            _data(examples, data_sha256, walk.visits[0]),
            max_new_tokens,
            tuple(rows),
            baselines,
            gate.model_dump(mode="json"),
            required(rows, gate) if recipe else tuple(row.label for row in rows if row.role == "candidate"),
            scorer.signatures,
        )
        verdicts = judge(results, gate)
        write_evaluation(out, results, verdicts, found)
        stamp(results, verdicts)
        cache.tidy()
    return results


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


def _data(examples: Sequence[Example], sha256: str, first: Visit) -> DataInfo:
    count = len(examples)
    return DataInfo(
        sha256,
        count,
        first.targets.shortened,
        sum(len(example.references[0].split()) for example in examples) / count,
        sum(len(example.document.split()) for example in examples) / count,
    )
