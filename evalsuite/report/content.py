"""What a report says, whatever it is written as: worked out once from results, verdicts and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import Parent, open_artifact
from contract.errors import AssayError
from contract.strictness import wider_limits
from contract.verdict import Outcome, Reason, Verdict, is_required, worst
from evalsuite.report.buckets import Faulty, buckets_table, faulty_examples
from evalsuite.report.distances import distance_table
from evalsuite.report.examples import Shown, examples_shown, read_all, reference_label
from evalsuite.report.scores import scores_table
from evalsuite.report.table import Table, comparison_table
from evalsuite.report.words import Answer, answers, task_warnings
from evalsuite.results import Results, Row

_NEAREST = 3  # checks named where all passed


@dataclass(frozen=True)
class Headline:
    """The outcome in a word and a sentence."""

    word: str
    sentence: str
    outcome: Outcome


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from, as far as its manifest says."""

    row: Row
    parents: tuple[Parent, ...]
    tools: dict[str, str]


@dataclass(frozen=True)
class Content:
    """Everything a report shows except the plots."""

    results: Results
    name: str
    headline: Headline
    required: dict[str, Outcome]
    verdicts: tuple[tuple[Verdict, tuple[Reason, ...]], ...]  # each with the reasons that decided it
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]
    comparison: Table
    scores: Table | None
    distances: Table | None
    buckets: Table | None
    faulty: tuple[Faulty, ...]
    shown: tuple[Shown, ...]
    reference: str | None  # whose summaries the shown ones are marked against
    origins: tuple[Origin, ...]
    limits: tuple[tuple[str, str], ...]


def content(
    results: Results,
    verdicts: Sequence[Verdict],
    predictions_folder: Path,
    against: Sequence[str] = (),
    counted: Sequence[Verdict] | None = None,
) -> Content:
    """Work it out; a row without a predictions file has no summaries shown.

    Args:
        results: the figures.
        verdicts: of this evaluation.
        predictions_folder: the summaries.
        against: what earlier evaluations say against what passes here, a line each.
        counted: the verdicts as they count with all earlier ones, which the headline goes by; None: as they are.

    Raises:
        AssayError: a predictions file is damaged.
    """
    required: dict[str, Outcome] = {
        wanted: worst([verdict.outcome for verdict in counted or verdicts if is_required(verdict, [wanted])])
        for wanted in results.require
    }
    predictions = read_all(results, predictions_folder)
    return Content(
        results=results,
        name=results.rows[-1].name if results.rows else "",
        headline=_headline(required),
        required=required,
        verdicts=tuple((verdict, tuple(_deciding(verdict))) for verdict in verdicts),
        answers=tuple(answers(results, verdicts)),
        warnings=(*against, *task_warnings(results), *wider_limits(results.limits)),
        comparison=comparison_table(results),
        scores=scores_table(results),
        distances=distance_table(results),
        buckets=buckets_table(results),
        faulty=tuple(faulty_examples(predictions)),
        shown=tuple(examples_shown(results, predictions)),
        reference=reference_label(results),
        origins=tuple(_origin(row) for row in results.rows),
        limits=tuple(_flat(results.limits)),
    )


def _headline(required: dict[str, Outcome]) -> Headline:
    outcomes = set(required.values())
    if outcomes == {"pass"}:
        return Headline("Proven.", "What must pass has passed.", "pass")
    if "fail" in outcomes:
        return Headline("Not proven.", "Something that must pass has failed.", "fail")
    said = "What must pass could not be told." if required else "Nothing was required to pass."
    return Headline("Not proven.", said, "inconclusive")


def _deciding(verdict: Verdict) -> list[Reason]:
    """The reasons that made a verdict what it is; for a pass, those that come nearest to their limit."""
    against = [reason for reason in verdict.reasons if reason.outcome == verdict.outcome != "pass"]
    if against:
        return against
    measured = [r for r in verdict.reasons if r.value is not None and r.limit and r.low is not None]
    return sorted(measured, key=lambda reason: -_share_of_limit(reason))[:_NEAREST] or list(verdict.reasons[:_NEAREST])


def _share_of_limit(reason: Reason) -> float:
    """How much of what is allowed was used: 1 is at the limit. Shares that must be high count by what they lack."""
    assert reason.value is not None
    assert reason.limit
    if reason.code.endswith(("top1_gold", "top1_greedy", "text_differs", "stop_differs")) and reason.limit < 1:
        return (1 - reason.value) / (1 - reason.limit)
    if reason.code.startswith("perplexity_ratio") and reason.limit > 1:
        return (reason.value - 1) / (reason.limit - 1)
    return reason.value / reason.limit


def _origin(row: Row) -> Origin:
    """From the manifest, where the artifact still lies where it was scored. A foreign one has none."""
    if row.foreign:
        return Origin(row, (), {})
    try:
        artifact = open_artifact(row.path)
    except AssayError:  # moved away since: the report is about what was scored, and says nothing of its parents
        return Origin(row, (), {})
    same = artifact.digest == row.digest
    return Origin(row, artifact.manifest.parents if same else (), artifact.manifest.tools if same else {})


def _flat(limits: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in limits.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            said = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", said
