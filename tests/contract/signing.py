"""Keys, artifacts and claims for the tests of signatures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from contract.artifact import Artifact, new_artifact
from contract.history import Evaluation, begin, finish
from contract.limits import GatePart
from contract.signed import PAYLOAD_TYPE, seal
from contract.signing_key import read_private_key
from contract.statement import Claim
from contract.verdict import Above, Basis, Outcome, Reason, Verdict


def make_key(folder: Path, name: str = "assay", password: str | None = None) -> Path:
    """NAME.key and NAME.pub; returns the former."""
    key = Ed25519PrivateKey.generate()
    locked = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path = folder / f"{name}.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def make_artifact(path: Path, content: bytes = bytes(100), **details: Any) -> Artifact:
    with new_artifact(path, "gguf", "tiny", details=details or {"prompt": "Summarize."}) as draft:
        (draft.path / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF" + content)
    return draft.finished


def make_verdict(artifact: Artifact, outcome: Outcome = "pass", above: Outcome | None = "pass") -> Verdict:
    reason = Reason("kl_mean_gold", outcome, "mean KL 0.01 nats", 0.01, 0.08, "nats", 300, 0.009, 0.011)
    chain = (Above("merged", "1" * 64, above), Above("adapter", "2" * 64, None))
    return Verdict("q4_k_m", artifact.digest, outcome, (reason,), "1" * 64, chain)


def make_basis(documents: int = 3, **limits: Any) -> Basis:
    gate = GatePart.model_validate(limits).model_dump(mode="json", exclude={"require"})
    keys = tuple(f"{index:064x}" for index in range(documents))
    return Basis("d" * 64, keys, gate, {"max_new_tokens": 60}, {"assay": "0.1.0"}, "2026-12-01T10:00:00Z", "e" * 64)


def keep(artifact: Artifact, verdict: Verdict, basis: Basis, *, finished: bool = True) -> None:
    """Beside the artifact, as an evaluation does."""
    evaluation = Evaluation(basis, (artifact.digest,))
    begin(artifact.verdict_path, evaluation)
    if finished:
        finish(artifact.verdict_path, Evaluation(basis, (artifact.digest,), (verdict,), True))


def sign(artifact: Artifact, key: Path, path: Path | None = None) -> Path:
    """A bundle as `assay gate --sign` writes it, beside the artifact."""
    path = path or artifact.signed_path
    path.write_text(seal(Claim.of(artifact, make_verdict(artifact), make_basis()), read_private_key(key)))
    return path


def seal_anything(payload: bytes, key: Path, payload_type: str = PAYLOAD_TYPE) -> dict[str, Any]:
    """An envelope around any bytes, which `seal` would refuse: what a signer with another program may make."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, payload_type, {})
    envelope.sign(read_private_key(key))
    return json.loads(json.dumps(envelope.to_dict()))


def payload_of(bundle: Path) -> dict[str, Any]:
    return json.loads(base64.b64decode(json.loads(bundle.read_text())["payload"]))


def with_payload(bundle: Path, payload: bytes) -> None:
    """Other content under the signatures that are there."""
    envelope = json.loads(bundle.read_text())
    envelope["payload"] = base64.b64encode(payload).decode()
    bundle.write_text(json.dumps(envelope))
