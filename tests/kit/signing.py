"""Keys, artifacts, bundles and a finished evaluation folder, for the tests of signatures."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from contract.artifact import Artifact, Kind, new_artifact, sha256_of
from contract.history import Evaluation, finish
from contract.limits import GatePart
from contract.signed import PAYLOAD_TYPE, seal
from contract.signing_key import read_private_key
from contract.statement import Claim
from contract.verdict import VERDICT_FILE, Above, Outcome, Reason, Verdict
from evalsuite.gate import judge
from evalsuite.kept import Kept
from evalsuite.results import METRICS_FILE, Results, Row, write_results
from tests.evalsuite.made import comparison, merge_comparison, results, row
from tests.kit.verdicts import basis, limits


def assay(*arguments: str | Path) -> tuple[int, str, str]:
    """The front door in this process: exit code, stdout, stderr."""
    import assay as door

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["assay", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            door.main()
    assert isinstance(end.value.code, int)
    assert end.value.code != 3, err.getvalue()
    return end.value.code, out.getvalue(), err.getvalue()


def make_key(folder: Path, name: str = "assay", password: str | None = None) -> Path:
    """NAME.key, which is returned, and NAME.pub beside it."""
    key = Ed25519PrivateKey.generate()
    locked = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path = folder / f"{name}.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def make_artifact(path: Path, kind: Kind = "gguf", content: bytes = bytes(100), **details: Any) -> Artifact:
    with new_artifact(path, kind, "tiny", details=details or {"prompt": "Summarize."}) as draft:
        if kind == "gguf":
            (draft.path / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF" + content)
        else:
            (draft.path / "config.json").write_text(json.dumps({"kind": kind}))
    return draft.finished


def make_verdict(artifact: Artifact, outcome: Outcome = "pass", above: Outcome | None = "pass") -> Verdict:
    reason = Reason("kl_mean_gold", outcome, "mean KL 0.01 nats", 0.01, 0.08, "nats", 300, 0.009, 0.011)
    chain = (Above("merged", "1" * 64, above), Above("adapter", "2" * 64, None))
    return Verdict("q4_k_m", artifact.digest, outcome, (reason,), "1" * 64, chain)


def make_claim(artifact: Artifact, **changes: Any) -> Claim:
    """A pass of the artifact on 300 documents; `changes` of the gate's limits."""
    return Claim.of(artifact, make_verdict(artifact), basis(limits=limits(**changes)))


def sign(artifact: Artifact, key: Path, path: Path | None = None, **changes: Any) -> Path:
    """The bundle of a pass, beside the artifact."""
    path = path or artifact.signed_path
    path.write_text(seal(make_claim(artifact, **changes), read_private_key(key)))
    return path


def seal_anything(path: Path, payload: bytes, key: Path, payload_type: str = PAYLOAD_TYPE) -> Path:
    """A bundle around any bytes, which `seal` would refuse: what the key's owner may sign with another program."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, payload_type, {})
    envelope.sign(read_private_key(key))
    path.write_text(json.dumps(envelope.to_dict()))
    return path


def payload_of(bundle: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(base64.b64decode(json.loads(bundle.read_text())["payload"]))
    return said


def make_evaluation(folder: Path, *more: str, **changes: Any) -> tuple[Path, dict[str, Artifact]]:
    """A finished evaluation of an adapter, its merge and a Q4_K_M in FOLDER, as `assay eval` leaves it.

    Args:
        folder: where it and the artifacts go; made if it is not there.
        more: labels of further GGUFs.
        changes: label -> the comparison of that row, instead of one that passes.
    """
    artifacts = {
        "adapter": make_artifact(folder / "adapter", "adapter"),
        "merged": make_artifact(folder / "merged", "merged"),
        **{label: make_artifact(folder / "gguf" / label, content=label.encode()) for label in ("q4_k_m", *more)},
    }

    def placed(label: str, *comparisons: Any) -> Row:
        artifact = artifacts[label]
        told = [replace(each, reference_digest=artifacts[each.reference_label].digest) for each in comparisons]
        quant = "f16" if label in ("adapter", "merged") else label.partition("-")[0]
        return row(label, *told, digest=artifact.digest, path=str(artifact.path), quant=quant)

    made = results(
        placed("adapter"),
        placed("merged", changes.get("merged", merge_comparison())),
        *(placed(label, changes.get(label, comparison())) for label in ("q4_k_m", *more)),
        limits=GatePart().model_dump(mode="json"),
        require=("merged", "q4_k_m"),
    )
    out = folder / "eval"
    out.mkdir(parents=True, exist_ok=True)
    evaluate(out, made)
    return out, artifacts


def evaluate(out: Path, made: Results, **changes: Any) -> None:
    """Write figures and verdicts into an evaluation folder and beside the artifacts; `changes` of its basis."""
    subjects = tuple(each.digest for each in made.rows if each.role == "candidate")
    begun = Evaluation(basis(100, **{"metrics_sha256": None, **changes}), subjects)
    kept = Kept.of(out, made)
    kept.begin(begun)
    write_results(out / METRICS_FILE, made)
    rests_on = replace(begun.basis, metrics_sha256=sha256_of(out / METRICS_FILE))
    judged = kept.weighed(replace(begun, basis=rests_on, verdicts=tuple(judge(made, GatePart())), finished=True))
    kept.finish(judged)
    finish(out / VERDICT_FILE, judged)
