"""Is this artifact proven: its files intact, and a passing verdict bound to its digest."""

from __future__ import annotations

from pathlib import Path

from contract.artifact import Artifact
from contract.errors import AssayError, listed
from contract.verdict import VERDICT_FILE, Verdict, read_verdicts, worst


class UnprovenError(AssayError):
    """The gate says no: there is no verdict on this artifact, or not a passing one."""

    exit_code = 1


def refuse_unproven(artifact: Artifact, verdict_path: Path | None = None) -> Verdict:
    """The passing verdict on exactly these bytes.

    Args:
        artifact: what is about to be served.
        verdict_path: the verdict file; None takes verdict.json in the artifact's own folder.

    Raises:
        AssayError: the artifact's files are not what its manifest says, or the verdict file given cannot be read.
        UnprovenError: no verdict is bound to its digest, or one is and it is not "pass".
    """
    if not artifact.foreign:  # the digest of a foreign one was computed from its bytes just now
        artifact.verify()
    path = verdict_path or artifact.folder / VERDICT_FILE
    if verdict_path is None and not path.is_file():
        raise UnprovenError(
            f"{artifact.name} is not proven: there is no verdict",
            where=str(path),
            hint="run assay eval, then give its file with --verdict EVAL_DIR/verdict.json",
        )
    verdicts = read_verdicts(path)
    mine = [verdict for verdict in verdicts if verdict.digest == artifact.digest]
    if not mine:
        judged = listed(f"{verdict.label} ({verdict.digest[:12]})" for verdict in verdicts) or "nothing"
        raise UnprovenError(
            f"{artifact.name} is not proven: no verdict is about these bytes",
            where=str(path),
            expected=f"a verdict on digest {artifact.digest[:12]}",
            got=f"verdicts on {judged}",
            hint="run assay eval on this very artifact",
        )
    outcome = worst([verdict.outcome for verdict in mine])
    verdict = next(verdict for verdict in mine if verdict.outcome == outcome)
    if outcome != "pass":
        against = [reason for reason in verdict.reasons if reason.outcome != "pass"]
        why = "\n    ".join(f"{reason.code} ({reason.outcome}): {reason.text}" for reason in against)
        raise UnprovenError(
            f'{artifact.name} is not proven: the verdict on it is "{outcome}"',
            where=str(path),
            got=why or "no reason was recorded",
            hint="look at the report beside the evaluation",
        )
    return verdict
