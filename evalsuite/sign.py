"""Signing what passed: a bundle beside each artifact and in the evaluation folder, once the gate has said yes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact, open_artifact, sha256_of
from contract.errors import AssayError, listed
from contract.history import Evaluation, known_history, last_evaluation, standing
from contract.signed import seal, write_bundle
from contract.statement import Claim
from contract.verdict import SIGNED_FILE, VERDICT_FILE, Verdict, is_required
from evalsuite.results import METRICS_FILE, SIGNED_FOLDER, Results

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner


class UnsignableError(AssayError):
    """A required artifact passed, but what passed is not the word that counts on it."""

    exit_code = 1


def sign_passed(
    folder: Path, results: Results, judged: Evaluation, require: Sequence[str], signer: CryptoSigner
) -> list[Path]:
    """Write a signed verdict for every artifact that passed; call it only where all that is required passed.

    Signed is what is written down: the last evaluation of the folder, which must be what the gate says now, and the
    word that counts among all evaluations of the artifact.

    Args:
        folder: the evaluation folder.
        results: its figures; every artifact's files were hashed again (`refuse_changed`).
        judged: the verdicts as the gate gives them now, by the limits it was asked to use.
        require: the labels that must pass.
        signer: the private key.

    Returns:
        The bundles in the evaluation folder, in the order of the verdicts.

    Raises:
        AssayError: the figures are not those that were judged, or something else lies where a bundle goes.
        UnsignableError: a required artifact cannot be signed, or none can.
    """
    last = last_evaluation(folder)
    if last.basis.metrics_sha256 != sha256_of(folder / METRICS_FILE):
        raise AssayError(
            "nothing is signed: metrics.json is not what the verdicts were made from",
            where=str(folder / METRICS_FILE),
            hint="run assay eval again",
        )
    if judged.basis.limits != last.basis.limits or _words(judged.verdicts) != _words(last.verdicts):
        raise UnsignableError(
            "nothing is signed: what the gate says now is not what the evaluation wrote down",
            where=str(folder),
            hint="run assay eval again, with the recipe whose limits are meant",
        )
    sealed: list[tuple[Verdict, Artifact, str]] = []
    left: dict[str, str] = {}
    for verdict, artifact in _passed(results, last):
        if why := _not_the_last_word(folder, artifact, last):
            left[verdict.label] = why
        else:
            sealed.append((verdict, artifact, seal(Claim.of(artifact, verdict, last.basis), signer)))
    required = [each.label for each in last.verdicts if each.label in left and is_required(each, require)]
    if required or not sealed:
        told = {label: why for label, why in left.items() if label in required} or left
        raise UnsignableError(
            "nothing is signed",
            where=str(folder),
            got=listed(f"{label}: {why}" for label, why in told.items()) or "no artifact that passed has files to sign",
        )
    for label, why in left.items():
        print(f"note: {label} is not signed: {why}", file=sys.stderr)
    return _write(folder / SIGNED_FOLDER, sealed)


def _words(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    return sorted((verdict.label, verdict.digest, verdict.outcome) for verdict in verdicts)


def _passed(results: Results, last: Evaluation) -> Iterator[tuple[Verdict, Artifact]]:
    """What passed and has files; what a URL serves has none here."""
    rows = {row.label: row for row in results.rows if row.kind != "endpoint"}
    for verdict in last.verdicts:
        if verdict.outcome != "pass" or verdict.label not in rows:
            continue
        artifact = open_artifact(rows[verdict.label].path)
        if artifact.digest != verdict.digest:
            raise AssayError(
                "an artifact is no longer the one that was judged",
                where=str(artifact.path),
                expected=f"digest {verdict.digest}",
                got=artifact.digest,
                hint="run assay eval again",
            )
        yield verdict, artifact


def _not_the_last_word(folder: Path, artifact: Artifact, last: Evaluation) -> str | None:
    """Why the evaluation is not what counts on the artifact, by the folder's history and the one beside it."""
    for path in (folder / VERDICT_FILE, artifact.verdict_path):
        counts = standing(known_history(path), artifact.digest)
        if counts is None and path == artifact.verdict_path:
            continue  # none is kept beside what Assay did not make, or cannot write to
        if counts is None or counts.state != "pass":
            return f"{path} says {counts.state if counts else 'nothing'} of it"
        if not counts.evaluation.is_same(last) or counts.evaluation.basis.metrics_sha256 != last.basis.metrics_sha256:
            return f"another evaluation counts: {path} has a later one of other figures"
    return None


def _write(folder: Path, sealed: Sequence[tuple[Verdict, Artifact, str]]) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)  # an earlier evaluation's
    folder.mkdir()
    copies = []
    for verdict, artifact, text in sealed:
        copy = folder / f"{verdict.label}{SIGNED_FILE.removeprefix('verdict')}"
        write_bundle(copy, text)
        copies.append(copy)
        if artifact.foreign and artifact.kind not in ("gguf", "onnx"):
            continue  # it may lie in another program's folder, as a hub's cache is
        try:
            write_bundle(artifact.signed_path, text)
        except OSError as error:
            print(f"note: nothing was written beside {artifact.path} ({error.strerror}): {copy}", file=sys.stderr)
    return copies
