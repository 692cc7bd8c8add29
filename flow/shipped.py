"""Which of a run's artifacts to ship: the smallest exported one that passed.

python -m flow.shipped RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from contract.artifact import ONNX_LABEL, Artifact, open_artifact
from contract.errors import AssayError
from contract.verdict import read_verdicts


def shipped(run: Path) -> Artifact:
    """The artifact of the run folder `run`, GGUF or ONNX.

    Raises:
        AssayError: the run has not been evaluated, or nothing that was exported passed.
    """
    passed = [verdict.label for verdict in read_verdicts(run / "eval") if verdict.outcome == "pass"]
    paths = [
        run / "onnx" / label.removeprefix(ONNX_LABEL) if label.startswith(ONNX_LABEL) else run / "gguf" / label
        for label in passed
    ]
    found = [open_artifact(path) for path in paths if path.is_dir()]
    if not found:
        raise AssayError(
            "nothing that was exported has passed",
            where=str(run),
            got=", ".join(passed) or "no verdict that says pass",
            hint="the reasons are in the evaluation's report",
        )
    return min(found, key=lambda artifact: artifact.size_bytes)


def main() -> None:
    """Print the folder."""
    try:
        print(shipped(Path(sys.argv[1])).path)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
