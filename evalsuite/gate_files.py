"""The files that `assay gate` writes: JUnit XML and Markdown for CI whatever it says, signatures if it says yes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from contract.files import write_whole
from contract.history import Evaluation
from contract.signing_key import read_private_key
from evalsuite.report.junit import junit
from evalsuite.report.step_summary import step_summary
from evalsuite.results import Results
from evalsuite.sign import sign_passed


def write_gate_files(
    folder: Path,
    results: Results,
    judged: Evaluation,
    require: Sequence[str],
    *,
    said_yes: bool,
    against: Sequence[str] = (),
    junit_to: Path | None = None,
    markdown_to: Path | None = None,
    sign_with: Path | None = None,
) -> None:
    """Write what was asked for; what there is to say of signatures goes to stderr.

    Args:
        folder: the evaluation folder.
        results: its figures.
        judged: the verdicts as the gate gives them now.
        require: the labels that must pass.
        said_yes: the gate's word.
        against: what earlier evaluations say against what passes here, a line each.
        junit_to: the file for JUnit XML.
        markdown_to: the file for Markdown.
        sign_with: the file of the private key.

    Raises:
        AssayError: the key cannot be used, or nothing can be signed (see `sign_passed`).
    """
    for path, write in ((junit_to, junit), (markdown_to, step_summary)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write(judged.verdicts, require, said_yes=said_yes, against=against))
    if sign_with is None:
        return
    signer = read_private_key(sign_with)
    if not said_yes:
        print("nothing was signed: not all that is required passed", file=sys.stderr)
        return
    for path in sign_passed(folder, results, judged, require, signer):
        print(f"signed by {signer.public_key.keyid}: {path}", file=sys.stderr)
