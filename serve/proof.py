"""Is this artifact proven: its files intact, and all evaluations of it, and of what it hangs from, come to a pass."""

from __future__ import annotations

from pathlib import Path

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError, listed
from contract.history import History, Standing, known_history, read_history, standing

_ROLES = ("merged", "adapter", "gguf")  # of parents that an artifact is compared with
_AGAINST = ("fail", "unfinished")


class UnprovenError(AssayError):
    """The gate says no: there is no verdict on this artifact, or not a passing one."""

    exit_code = 1


def refuse_unproven(artifact: Artifact, verdict_path: Path | None = None) -> Standing:
    """The evaluation that counts, with its passing verdict on exactly these bytes and this manifest.

    Args:
        artifact: what is about to be served.
        verdict_path: a verdict file from elsewhere, which may prove what is not proven beside the artifact. What is
            kept beside the artifact counts all the same.

    Raises:
        AssayError: the artifact's files are not what its manifest says, or a verdict file cannot be read.
        UnprovenError: no verdict is bound to its digest, or what all of them come to is no pass.
    """
    if not artifact.foreign:  # the digest of a foreign one was computed from its bytes just now
        artifact.verify()
    refuse_spoken_against(artifact)
    path = verdict_path or artifact.verdict_path
    history = read_history(path) if verdict_path else known_history(path)
    if not history and verdict_path is None:
        old = "one of an earlier version" if path.is_file() else "there is none"
        raise UnprovenError(
            f"{artifact.name} is not proven: there is no verdict",
            where=str(path),
            got=old,
            hint="run assay eval, then serve it; or give its file with --verdict EVAL_DIR/verdict.json",
        )
    counts = standing(history, artifact.digest)
    if counts is None:
        raise UnprovenError(
            f"{artifact.name} is not proven: no verdict is about these bytes and this manifest",
            where=str(path),
            expected=f"a verdict on digest {artifact.digest[:12]}",
            got=f"verdicts on {_judged(history)}",
            hint="run assay eval on this very artifact",
        )
    verdict = counts.verdict
    if counts.state != "pass" or verdict is None:
        raise _refusal(artifact, counts, path)
    weak = [f"{above.label} ({above.outcome})" for above in verdict.chain if above.outcome not in ("pass", None)]
    if weak:
        raise UnprovenError(
            f"{artifact.name} is not proven: what it was compared with did not pass",
            where=str(path),
            got=listed(weak),
            hint="evaluate that one, and mend it first",
        )
    return counts


def refuse_spoken_against(artifact: Artifact) -> None:
    """Raise where the evaluations kept beside the artifact, or beside what it hangs from, say no.

    What it hangs from is looked at where it lies, if it is there: a serving machine may have the artifact alone.

    Raises:
        AssayError: a verdict file is damaged.
        UnprovenError: one of them failed, or an evaluation was begun and not finished.
    """
    counts = standing(known_history(artifact.verdict_path), artifact.digest)
    if counts is not None and counts.state in _AGAINST:
        raise _refusal(artifact, counts, artifact.verdict_path)
    for above in _above(artifact):
        found = standing(known_history(above.verdict_path), above.digest)
        if found is not None and found.state in _AGAINST:
            raise UnprovenError(
                f"{artifact.name} is not proven: it was made from {above.name}, and that did not pass",
                where=str(above.verdict_path),
                got=_why(found),
                hint="evaluate both again",
            )


def _above(artifact: Artifact) -> list[Artifact]:
    found = []
    for parent in artifact.manifest.parents:
        if parent.role not in _ROLES or not Path(parent.path).exists():
            continue
        try:
            above = open_artifact(parent.path)
        except AssayError:  # something else lies there now
            continue
        if above.is_parent(parent, artifact.manifest):
            found += [above, *_above(above)]
    return found


def _refusal(artifact: Artifact, counts: Standing, path: Path) -> UnprovenError:
    basis = counts.evaluation.basis
    when = f"of {basis.time_utc or 'an unknown time'} on {len(basis.documents)} documents"
    if counts.state == "unfinished":
        return UnprovenError(
            f"{artifact.name} is not proven: an evaluation of it was begun and not finished",
            where=str(path),
            got=f"the evaluation {when}",
            hint="run the same assay eval again: what was measured so far is kept",
        )
    return UnprovenError(
        f'{artifact.name} is not proven: the verdict on it is "{counts.state}"',
        where=str(path),
        got=f"the evaluation {when} says:\n    {_why(counts)}",
        hint="look at the report beside the evaluation; only an evaluation of the same documents under limits at least "
        "as strict lifts it",
    )


def _why(counts: Standing) -> str:
    reasons = counts.verdict.reasons if counts.verdict else ()
    against = [f"{reason.code} ({reason.outcome}): {reason.text}" for reason in reasons if reason.outcome != "pass"]
    return "\n    ".join(against) or "no reason was recorded"


def _judged(history: History) -> str:
    labels = [f"{verdict.label} ({verdict.digest[:12]})" for e in history for verdict in e.verdicts]
    return listed(dict.fromkeys(labels)) or "nothing"
