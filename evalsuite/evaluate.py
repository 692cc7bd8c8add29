"""The stage: artifacts and examples in; scores, verdicts and a report out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.example import Example
from evalsuite.environment import environment
from evalsuite.folder import refuse_foreign_folder, stamp, write_evaluation
from evalsuite.gate import judge
from evalsuite.plan import plan
from evalsuite.results import DataInfo, Prediction, Results, Speed
from evalsuite.rows import baselines_of, predictions_of, row_of
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
    roots = plan(artifacts, reference, base)
    with TemporaryDirectory(prefix="assay-eval-") as scratch:
        walk = Walk(examples, recipe.prompt.spec() if recipe else None, max_new_tokens, threads, Path(scratch))
        for root in roots:
            walk.tree(root)
    visits = [visit for visit in walk.visits if visit.node.is_row]
    visits.sort(key=lambda visit: visit.node.label != "base")  # stable: the base first, then as they were visited
    found: dict[str, Sequence[Prediction]] = {v.node.label: predictions_of(v, examples) for v in visits}
    speeds = {visit.node.label: _speed(visit, threads) if speed else None for visit in visits}
    print("assay eval · judging and writing …", file=sys.stderr, flush=True)
    rows = tuple(row_of(visit, found[visit.node.label], found, examples, speeds[visit.node.label]) for visit in visits)
    candidates = tuple(row.label for row in rows if row.role == "candidate")
    results = Results(
        environment(threads),
        _data(examples, walk.visits[0]),
        max_new_tokens,
        rows,
        baselines_of(examples),
        gate.model_dump(mode="json"),
        tuple(gate.require) if recipe else candidates,
    )
    verdicts = judge(results, gate)
    write_evaluation(out, results, verdicts, found)
    stamp(results, verdicts)
    return results


def _speed(visit: Visit, threads: int) -> Speed | None:
    """None, and a word on stderr, where the artifact cannot generate at all."""
    label = visit.node.label
    print(f"assay eval · {label}: latency and memory …", file=sys.stderr, flush=True)
    try:
        return measure_speed(visit.node.artifact, visit.prompts[: len(visit.targets.documents)], threads)
    except AssayError as error:
        print(f"assay eval · {label}: no speed: {error}", file=sys.stderr, flush=True)
        return None


def _data(examples: Sequence[Example], first: Visit) -> DataInfo:
    rows = json.dumps([example.as_row() for example in examples], sort_keys=True, ensure_ascii=False)
    count = len(examples)
    return DataInfo(
        hashlib.sha256(rows.encode()).hexdigest(),
        count,
        first.targets.shortened,
        sum(len(example.references[0].split()) for example in examples) / count,
        sum(len(example.document.split()) for example in examples) / count,
    )
