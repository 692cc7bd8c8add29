"""Every evaluation of an artifact, in the order they were made, and the one rule that says what they come to.

A fail stands until an evaluation passes that includes the failed one's documents, under limits at least as strict in
every field, with summaries written the same way, against the same artifacts. A later fail beats an earlier pass. What
was begun and not finished stands like a fail: nobody knows what its figures would have said. An inconclusive takes a
pass away unless it looked at only some documents of a pass that covers it. It is lifted by a pass on at least as many
documents, measured as strictly. The order is that of the file; no clock is asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from contract.errors import AssayError
from contract.files import read_versioned, write_whole
from contract.locks import lock
from contract.typed import from_json
from contract.verdict import VERDICT_FILE, Basis, Verdict, worst

HISTORY_SCHEMA = 2


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what it rests on, the digests it judges, and its verdicts; not finished: none of them yet."""

    basis: Basis
    subjects: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    finished: bool = False
    above: dict[str, tuple[str, ...]] = field(default_factory=dict)  # subject -> digests of all that it hangs from

    def about(self, digest: str) -> Evaluation | None:
        """The part about one artifact, or None."""
        if digest not in self.subjects:
            return None
        verdicts = tuple(verdict for verdict in self.verdicts if verdict.digest == digest)
        above = {digest: self.above[digest]} if digest in self.above else {}
        return replace(self, subjects=(digest,), verdicts=verdicts, above=above)

    def is_same(self, other: Evaluation) -> bool:
        """The same data, limits and way of writing: one of them is the other done again."""
        mine, its = self.basis, other.basis
        return (mine.data_sha256, mine.limits, mine.generate) == (its.data_sha256, its.limits, its.generate)


History = tuple[Evaluation, ...]


@dataclass(frozen=True)
class Standing:
    """What the evaluations of one artifact come to. `state` "unfinished": one was begun and not ended."""

    state: Literal["pass", "fail", "inconclusive", "unfinished"]
    evaluation: Evaluation
    verdict: Verdict | None
    passes: tuple[Evaluation, ...] = ()  # where it passes: all that do and count, `evaluation` as the last


def standing(history: Iterable[Evaluation], digest: str) -> Standing | None:
    """What counts of all evaluations of the artifact of that digest; None: there is none."""
    passed: list[Standing] = []
    against: list[Standing] = []  # what no later pass has lifted
    for evaluation in history:
        mine = evaluation.about(digest)
        if mine is None:
            continue
        now = _told(mine)
        if now.state == "pass":
            passed.append(now)
            against = [other for other in against if not _lifts(now, other)]
        elif now.state != "inconclusive" or not any(_is_quick_look(now, one) for one in passed):
            against.append(now)
    for state in ("fail", "unfinished", "inconclusive"):
        found = [other for other in against if other.state == state]
        if found:
            return found[-1]
    return replace(passed[-1], passes=tuple(one.evaluation for one in passed)) if passed else None


def _told(evaluation: Evaluation) -> Standing:
    if not evaluation.finished:
        return Standing("unfinished", evaluation, None)
    outcome = worst([verdict.outcome for verdict in evaluation.verdicts])  # inconclusive where there is no word on it
    verdict = next((verdict for verdict in evaluation.verdicts if verdict.outcome == outcome), None)
    return Standing(outcome, evaluation, verdict)


def _is_quick_look(now: Standing, passed: Standing) -> bool:
    """Did `now` look at some of the documents of a pass only? Then that it cannot tell says nothing against it."""
    fewer = len(now.evaluation.basis.documents) < len(passed.evaluation.basis.documents)
    return fewer and _covers(passed, now)


def _lifts(now: Standing, other: Standing) -> bool:
    if other.state != "inconclusive":
        return _covers(now, other)
    return len(now.evaluation.basis.documents) >= len(other.evaluation.basis.documents) and _as_strictly(now, other)


def _covers(now: Standing, other: Standing) -> bool:
    """Did `now` measure all that `other` did, and judge it at least as strictly?"""
    return set(other.evaluation.basis.documents) <= set(now.evaluation.basis.documents) and _as_strictly(now, other)


def _as_strictly(now: Standing, other: Standing) -> bool:
    """The same way of writing, the same artifacts above it, and no limit wider."""
    mine, its = now.evaluation.basis, other.evaluation.basis
    if its.generate != mine.generate or not _above(other) <= _above(now):
        return False
    return at_least_as_strict(mine.limits, its.limits)


def _above(one: Standing) -> set[str]:
    known = {digest for digests in one.evaluation.above.values() for digest in digests}
    return known | ({each.digest for each in one.verdict.chain} if one.verdict else set())


def at_least_as_strict(limits: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Is no limit wider than the other's of the same name? One that is not there limits nothing."""
    return all(name in limits and _no_wider(name, limits[name], value) for name, value in others.items())


def _no_wider(name: str, ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return at_least_as_strict(ours, theirs)
    if isinstance(ours, bool) and isinstance(theirs, bool) and name.startswith("allow_"):
        return theirs or not ours
    if _is_number(ours) and _is_number(theirs):
        if name.startswith("min_"):
            return bool(ours >= theirs)
        if name.startswith("max_") or name == "rounding_multiple":
            return bool(ours <= theirs)
    return bool(ours == theirs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_history(path: Path) -> History:
    """The evaluations in a verdict file, or in the one of a folder.

    Raises:
        AssayError: there is no such file, or it is of another version or damaged.
    """
    path = path / VERDICT_FILE if path.is_dir() else path
    return read_versioned(path, "verdict file", HISTORY_SCHEMA, _history)


def _history(data: dict[str, Any]) -> History:
    evaluations: History = from_json(tuple[Evaluation, ...], data["evaluations"])
    for evaluation in evaluations:
        strangers = [verdict.label for verdict in evaluation.verdicts if verdict.digest not in evaluation.subjects]
        if strangers or (evaluation.verdicts and not evaluation.finished):
            raise ValueError(f"verdicts that the evaluation is not about: {strangers}")
    return evaluations


def known_history(path: Path) -> History:
    """The evaluations in a verdict file; none where there is no file, or an older version, which proves nothing.

    Raises:
        AssayError: it is damaged.
    """
    if not path.is_file() or _is_old(path):
        return ()
    return read_history(path)


def _is_old(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["schema"] == 1)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts of the last evaluation in a verdict file; `path` is the file or the folder it lies in.

    Raises:
        AssayError: there is no such file, it is not one of ours, or the last evaluation was not finished.
    """
    return list(last_evaluation(path).verdicts)


def last_evaluation(path: Path) -> Evaluation:
    """The last evaluation in a verdict file.

    Raises:
        AssayError: as `read_verdicts`.
    """
    history = read_history(path)
    if not history or not history[-1].finished:
        raise AssayError(
            "the evaluation was not finished",
            where=str(path),
            hint="run the same assay eval again: what was measured so far is kept",
        )
    return history[-1]


def last_judged(path: Path, metrics_sha256: str) -> Evaluation:
    """The last finished evaluation of exactly these figures, whatever was begun after it.

    Raises:
        AssayError: there is none.
    """
    for evaluation in reversed(read_history(path)):
        if evaluation.finished and evaluation.basis.metrics_sha256 == metrics_sha256:
            return evaluation
    raise AssayError(
        "the figures are not those that were judged: metrics.json was edited",
        where=str(path),
        hint="run assay eval again",
    )


def about(history: Iterable[Evaluation], digest: str) -> History:
    """The parts of a history that are about one artifact."""
    return tuple(part for evaluation in history if (part := evaluation.about(digest)) is not None)


def joined(elsewhere: Sequence[Evaluation], beside: History) -> History:
    """One history of two: first what only the other place remembers, for what is beside the artifact came after it."""
    return (*(part for part in elsewhere if part not in beside), *beside)


def added(history: History, evaluation: Evaluation) -> History:
    """The history with one more evaluation as the last, in the place of the same one, begun or told before."""
    return (*(other for other in history if not _replaced(other, evaluation)), evaluation)


def begin(path: Path, evaluation: Evaluation) -> None:
    """Note that an evaluation begins: until it is finished, no earlier pass counts."""
    with _changing(path) as history:
        _write(path, added(history, evaluation))


def finish(path: Path, evaluation: Evaluation) -> None:
    """Put a finished evaluation in the place of the one that was begun; nothing else is forgotten."""
    with _changing(path) as history:
        _write(path, added(history, evaluation))


def restore(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Put evaluations that are known from elsewhere before those that a verdict file has, each once."""
    with _changing(path) as history:
        whole = joined(evaluations, history)
        if whole != history:
            _write(path, whole)


def _replaced(old: Evaluation, new: Evaluation) -> bool:
    """The same evaluation, begun before or with the very same outcome: told once."""
    if not old.is_same(new) or not set(old.subjects) <= set(new.subjects):
        return False
    if any(new.above.get(subject) != digests for subject, digests in old.above.items()):
        return False  # held against something else
    return not old.finished or (new.finished and old.verdicts == new.verdicts)


@contextmanager
def _changing(path: Path) -> Iterator[History]:
    """Alone with a verdict file, so that two evaluations do not lose each other's word."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        lock(descriptor, path.parent, wait=True)
        yield known_history(path)
    finally:
        os.close(descriptor)


def _write(path: Path, evaluations: Sequence[Evaluation]) -> None:
    body = {"schema": HISTORY_SCHEMA, "evaluations": [asdict(evaluation) for evaluation in evaluations]}
    write_whole(path, json.dumps(body, indent=2, allow_nan=False) + "\n")
