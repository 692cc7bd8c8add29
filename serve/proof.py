"""Is this artifact proven: its files intact, and all evaluations of it, and of what it hangs from, come to a pass."""

from __future__ import annotations

from pathlib import Path

from contract.artifact import Artifact
from contract.errors import AssayError, listed
from contract.history import History, Standing, about, joined, known_history, read_history, standing
from contract.spoken_against import spoken_against


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
    beside = known_history(artifact.verdict_path)
    elsewhere = read_history(verdict_path) if verdict_path else ()
    mine = about(elsewhere, artifact.digest)
    history = joined(mine, beside) if mine else (elsewhere or beside)
    if not history and verdict_path is None:
        old = "one of an earlier version" if path.is_file() else "there is none"
        raise UnprovenError(
            f"{artifact.name} is not proven: there is no verdict",
            where=str(path),
            got=old,
            hint="run assay eval, then serve it; or give its file with --verdict EVAL_DIR/verdict.json",
        )
    given = standing(elsewhere, artifact.digest)
    if given is not None and given.state != "pass":  # the order of two files is not known, so neither may say no
        raise _refusal(artifact, given, path)
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

    Raises:
        AssayError: a verdict file is damaged.
        UnprovenError: one of them failed, or an evaluation was begun and not finished.
    """
    found = spoken_against(artifact)
    if found is None:
        return
    which, counts = found
    if which is artifact:
        raise _refusal(artifact, counts, artifact.verdict_path)
    raise UnprovenError(
        f"{artifact.name} is not proven: it was made from {which.name}, and that did not pass",
        where=str(which.verdict_path),
        got=_why(counts),
        hint="evaluate both again",
    )


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
