"""Verdicts kept beside artifacts: begun before anything is measured, finished at the end, weighed with earlier ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.history import (
    Evaluation,
    History,
    Standing,
    about,
    added,
    begin,
    finish,
    joined,
    known_history,
    restore,
    standing,
)
from contract.verdict import VERDICT_FILE, Above, Outcome, Verdict, proven, worst
from evalsuite.folder import write_evaluation
from evalsuite.gate import judge, weakened
from evalsuite.results import Prediction, Results, Row, Unloadable

if TYPE_CHECKING:
    from contract.limits import GatePart

_OUTCOMES: dict[str, Outcome] = {"pass": "pass", "fail": "fail"}  # anything else is inconclusive


class Kept:
    """The histories of one evaluation's artifacts, as they are when it begins, and of the evaluation folder `out`.

    Kept beside everything that Assay made and everything that is served; another folder may belong to a hub's cache.

    Raises:
        AssayError: a verdict file is damaged.
    """

    def __init__(self, out: Path, artifacts: Iterable[Artifact]) -> None:
        self._out = out / VERDICT_FILE
        self._paths = {
            artifact.digest: artifact.verdict_path
            for artifact in artifacts
            if not artifact.foreign or artifact.kind in ("gguf", "onnx")
        }
        self.before = _known(self._out)
        self._beside = {digest: _known(path) for digest, path in self._paths.items()}
        self._closed: set[str] = set()  # digests beside which nothing can be written

    @classmethod
    def of(cls, out: Path, results: Results, moved: Iterable[Artifact] = ()) -> Kept:
        """Of the rows of an evaluation, those that are still there as they were; `moved` lie elsewhere now."""
        rows: list[Row | Unloadable] = [*results.rows, *results.unloadable]
        paths = {row.digest: row.path for row in rows if row.kind != "endpoint" and Path(row.path).exists()}
        found = [(digest, open_artifact(path)) for digest, path in paths.items()]
        there = [artifact for digest, artifact in found if artifact.digest == digest]
        return cls(
            out, [*there, *(artifact for artifact in moved if any(artifact.digest == row.digest for row in rows))]
        )

    def history(self, digest: str) -> History:
        """All that is known of an artifact: first what only the evaluation folder remembers."""
        return joined(about(self.before, digest), self._beside.get(digest, ()))

    def begin(self, evaluation: Evaluation) -> None:
        """From now on no earlier pass counts, beside the artifacts and in the evaluation folder.

        Raises:
            AssayError: an old pass stands where nothing can be written.
        """
        paths = {digest: path for digest in evaluation.subjects if (path := self._paths.get(digest)) is not None}
        for digest, path in paths.items():  # before anything is noted anywhere
            if not os.access(path.parent, os.W_OK):
                self._refuse_standing_pass(digest, path, "the folder cannot be written")
        begin(self._out, evaluation)
        for digest, path in paths.items():
            part = evaluation.about(digest)
            assert part is not None
            try:
                begin(path, part)
            except OSError as error:
                self._refuse_standing_pass(digest, path, error.strerror)

    def _refuse_standing_pass(self, digest: str, path: Path, why: str | None) -> None:
        self._closed.add(digest)
        known = standing(self._beside[digest], digest)
        if known is not None and known.state == "pass":
            raise AssayError(
                "the verdict beside the artifact cannot be replaced, so an old pass would stand",
                where=str(path),
                got=why,
                hint="make the folder writable, or remove that file",
            ) from None

    def finish(self, evaluation: Evaluation) -> None:
        """Put each verdict beside its artifact, where the artifact is still the one that was judged."""
        for digest in evaluation.subjects:
            part, path = evaluation.about(digest), self._paths.get(digest)
            if part is None or path is None:
                continue
            try:
                if digest in self._closed:
                    raise PermissionError(13, "nothing can be written there")
                finish(path, part)
            except OSError as error:
                hint = f"serve it with --verdict {self._out}"
                print(f"note: no verdict beside {path.parent} ({error.strerror}): {hint}", file=sys.stderr)

    def restore(self) -> None:
        """Beside an artifact that was made again, put back what the evaluation folder remembers of it."""
        for digest, path in self._paths.items():
            restore(path, about(self.before, digest))

    def weighed(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation, no verdict in it better than what earlier ones say of the artifacts it hangs from."""
        verdicts = []
        for verdict in evaluation.verdicts:
            chain = tuple(self._weighed_link(above, evaluation) for above in verdict.chain)
            if chain != verdict.chain:
                verdict = weakened(replace(verdict, chain=chain), chain, "of which all evaluations together say")
            verdicts.append(verdict)
        return replace(evaluation, verdicts=tuple(verdicts))

    def _weighed_link(self, above: Above, evaluation: Evaluation) -> Above:
        found = standing(added(self.history(above.digest), evaluation), above.digest)
        if found is None:
            return above
        said = _OUTCOMES.get(found.state, "inconclusive")
        return replace(above, outcome=worst([said, above.outcome or said]))

    def standings(self, evaluation: Evaluation) -> dict[str, Standing]:
        """What counts of every artifact of the evaluation, by label: this evaluation as the last of its history.

        Where the history holds it already, it stands where it stood, for what came after it counts too.
        """
        found = {}
        for verdict in evaluation.verdicts:
            history = self.history(verdict.digest)
            part = evaluation.about(verdict.digest)
            assert part is not None
            at = [i for i, e in enumerate(history) if e.is_same(part) and e.basis.time_utc == part.basis.time_utc]
            history = (*history[: at[-1]], part, *history[at[-1] + 1 :]) if at else added(history, part)
            counts = standing(history, verdict.digest)
            assert counts is not None
            found[verdict.label] = counts
        return found


def settle(
    kept: Kept,
    out: Path,
    results: Results,
    gate: GatePart,
    evaluation: Evaluation,
    predictions: Mapping[str, Sequence[Prediction]],
) -> Evaluation:
    """Judge the figures of an evaluation that was begun, weigh it with all earlier ones, and write it all down.

    Returns:
        The evaluation, finished, as it lies in `out` and beside the artifacts.
    """
    judged = kept.weighed(replace(evaluation, verdicts=tuple(judge(results, gate)), finished=True))
    standings = kept.standings(judged)
    against, counts = standing_lines(judged, standings), counted(judged, standings)
    finished = write_evaluation(out, results, judged, predictions, against, counts)
    kept.finish(finished)
    return finished


def _known(path: Path) -> History:
    try:
        return known_history(path)
    except AssayError as error:
        hint = "move that file away: the next evaluation begins a history of its own"
        raise AssayError(error.what, where=error.where, got=error.got, expected=error.expected, hint=hint) from None


def is_proven(evaluation: Evaluation, standings: dict[str, Standing], require: Sequence[str]) -> bool:
    """Does everything that is required pass, here and with all earlier evaluations?"""
    return proven(evaluation.verdicts, require) and proven(counted(evaluation, standings), require)


def counted(evaluation: Evaluation, standings: dict[str, Standing]) -> list[Verdict]:
    """The verdicts with what they come to with all earlier evaluations as their outcome."""
    return [
        replace(verdict, outcome=_OUTCOMES.get(standings[verdict.label].state, "inconclusive"))
        for verdict in evaluation.verdicts
    ]


def standing_lines(evaluation: Evaluation, standings: dict[str, Standing]) -> list[str]:
    """What earlier evaluations say against what passes in this one."""
    lines = []
    for verdict in evaluation.verdicts:
        counts = standings[verdict.label]
        if verdict.outcome == "pass" and counts.state != "pass":
            lines.append(f"{verdict.label}: {told(counts)}")
    return lines


def told(counts: Standing) -> str:
    """In words: which evaluation counts, and what would lift it."""
    basis = counts.evaluation.basis
    when = f"the evaluation of {basis.time_utc or 'an unknown time'} on {len(basis.documents)} documents"
    if counts.state == "unfinished":
        return f"{when} was begun and not finished; run it again, for what was measured is kept"
    codes = ", ".join(r.code for r in counts.verdict.reasons if r.outcome == counts.state) if counts.verdict else ""
    lift = "one that includes its documents, under limits at least as strict, lifts it"
    return f'{when} says "{counts.state}" ({codes or "no reason recorded"}); {lift}'
