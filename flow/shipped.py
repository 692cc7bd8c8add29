"""Which of a run's artifacts to ship: the smallest exported one that passed.

python -m flow.shipped RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from contract.artifact import ONNX_LABEL, Artifact, open_artifact
from contract.errors import AssayError
from contract.history import read_verdicts
from serve.proof import refuse_unproven


def shipped(run: Path) -> Artifact:
    """The artifact of the run folder `run`, GGUF or ONNX.

    Raises:
        AssayError: the run has not been evaluated, or nothing that was exported passed.
    """
    passed = {verdict.label: verdict.digest for verdict in read_verdicts(run / "eval") if verdict.outcome == "pass"}
    found, refusals = [], []
    for label, digest in passed.items():
        path = _folder(run, label)
        if path.is_dir():
            try:
                artifact = open_artifact(path)
                refuse_unproven(artifact)
            except AssayError as refusal:  # unproven since, or damaged: the next one may do
                refusals.append(f"{label}: {refusal.what}")
                continue
            if artifact.digest == digest:
                found.append(artifact)
    if not found:
        raise AssayError(
            "nothing that was exported has passed",
            where=str(run),
            got="; ".join(refusals) or ", ".join(passed) or "no verdict that says pass",
            hint="the reasons are in the evaluation's report",
        )
    return min(found, key=lambda artifact: artifact.size_bytes)


def refused(run: Path) -> dict[str, str]:
    """What `assay serve` says of each exported artifact of `run` that did not pass, by its label; {}: all passed."""
    said = {}
    for verdict in read_verdicts(run / "eval"):
        path = _folder(run, verdict.label)
        if verdict.outcome != "pass" and path.is_dir():
            try:
                refuse_unproven(open_artifact(path))
            except AssayError as refusal:
                said[verdict.label] = str(refusal)
    return said


def _folder(run: Path, label: str) -> Path:
    onnx = label.startswith(ONNX_LABEL)
    return run / "onnx" / label.removeprefix(ONNX_LABEL) if onnx else run / "gguf" / label


def main() -> None:
    """Print the folder."""
    try:
        print(shipped(Path(sys.argv[1])).path)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
