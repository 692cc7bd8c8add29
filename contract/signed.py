"""A verdict that others can check: sealed with a key, in a DSSE envelope, and examined elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError, listed
from contract.files import write_whole
from contract.plain import plain
from contract.statement import Claim, ForeignStatementError, read_statement, strict_json, write_statement
from contract.verdict import worst

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MOST_BYTES = 8 << 20  # of a bundle; one of ours has some ten thousand
_MOST_SIGNATURES = 16

Code = Literal["no_key", "signature", "type", "outcome", "chain", "artifact"]


@dataclass(frozen=True)
class Problem:
    """Why a bundle proves nothing: a stable code, and plain words."""

    code: Code
    text: str


@dataclass(frozen=True)
class Bundle:
    """An envelope as it was read: nothing in it is to be believed until a key says so."""

    where: str
    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys that are said to have signed."""
        return tuple(signature.keyid for signature in self.signatures)

    def is_signed_by(self, key: SSlibKey) -> bool:
        """Is one of its signatures this key's, over these very bytes and their type?"""
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError

        envelope = Envelope(self.payload, self.payload_type, {each.keyid: each for each in self.signatures})
        try:
            return list(envelope.verify([key], threshold=1)) == [key.keyid]
        except VerificationError:
            return False


@dataclass(frozen=True)
class Examined:
    """A bundle, looked at: it proves what it claims if there is no problem. `claim` None: it could not be read.

    `whole`: of the artifact that was given every byte was held against the claim, the manifest too; False: the model
    file alone, without its manifest; None: none was given, or it is another one.
    """

    claim: Claim | None
    problems: tuple[Problem, ...]
    key_ids: tuple[str, ...]
    whole: bool | None = None


def seal(claim: Claim, signer: CryptoSigner) -> str:
    """The signed bundle of a claim, as the text of its file; the same for the same claim and key.

    Raises:
        AssayError: the claim is of no pass, or hangs from something that did not pass: such a word is never signed.
    """
    from securesystemslib.dsse import Envelope

    if problems := _word(claim):
        raise AssayError(
            "a verdict that is not a pass all the way up is not signed",
            where=claim.verdict.label,
            got=listed(problem.text for problem in problems),
        )
    envelope = Envelope(write_statement(claim), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1) + "\n"


def read_bundle(path: Path) -> Bundle:
    """Read the file of a bundle.

    Raises:
        AssayError: there is none, or it is no DSSE envelope.
    """
    if not path.is_file():
        raise AssayError("there is no signed verdict", where=str(path), hint="assay gate EVAL_DIR --sign KEY makes one")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return _bundle(strict_json(data), str(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AssayError(
            "this is not a signed verdict",
            where=str(path),
            expected="a DSSE envelope, as assay gate --sign writes it",
            got=plain(f"{type(error).__name__}: {error}"),
        ) from None


def _bundle(body: Any, where: str) -> Bundle:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error

    texts = [body["payload"], body["payloadType"], *(each[name] for each in body["signatures"] for name in _SIGNATURE)]
    if not all(isinstance(text, str) for text in texts) or len(body["signatures"]) > _MOST_SIGNATURES:
        raise ValueError("not an envelope's fields")
    try:
        envelope = Envelope.from_dict(body)
    except Error as error:
        raise ValueError(str(error)) from None
    return Bundle(where, envelope.payload, envelope.payload_type, tuple(envelope.signatures.values()))


_SIGNATURE = ("keyid", "sig")


def write_bundle(path: Path, text: str) -> None:
    """Write a bundle whole or not at all; what lies there is replaced only if it is one of ours.

    Raises:
        AssayError: something else lies there.
    """
    if path.is_symlink() or path.exists():
        hint = "move it away, or give another name"
        if path.is_symlink():
            raise AssayError("a signed verdict does not take the place of a link", where=str(path), hint=hint)
        try:
            bundle = read_bundle(path)
            read_statement(bundle.payload, bundle.where)
        except AssayError:
            raise AssayError(
                "what lies here is not a signed verdict, and is not overwritten", where=str(path), hint=hint
            ) from None
    write_whole(path, text)


def examine(bundle: Bundle, key: SSlibKey | None, artifact: Path | None = None) -> Examined:
    """Hold a bundle against a key and, if one is given, against an artifact, which is hashed again.

    Args:
        bundle: what was read.
        key: the key that is trusted; without one nothing is proven, and the claim is only told.
        artifact: the artifact it is said to be about: a folder, or a .gguf copied out of its folder.

    Raises:
        AssayError: what the key did sign cannot be read, or there is no such artifact.
    """
    problems = []
    if key is None:
        problems.append(Problem("no_key", "no key was given; one that is found in a bundle would prove nothing"))
    elif not bundle.is_signed_by(key):
        signed = f"by {listed(bundle.key_ids)}" if bundle.signatures else "by nobody"
        problems.append(Problem("signature", f"key {key.keyid} did not sign this; it is said to be signed {signed}"))
    try:
        claim = _read_claim(bundle)
    except ForeignStatementError as error:
        return Examined(None, (*problems, Problem("type", f"{error.what}: {error.got}")), bundle.key_ids)
    except AssayError:
        if key is None or not problems:
            raise
        return Examined(None, tuple(problems), bundle.key_ids)
    problems += _word(claim)
    whole = None
    if artifact is not None:
        whole, others = _held_against(claim, artifact)
        problems += others
    return Examined(claim, tuple(problems), bundle.key_ids, whole)


def _read_claim(bundle: Bundle) -> Claim:
    if bundle.payload_type != PAYLOAD_TYPE:
        raise ForeignStatementError(
            "what it holds is not an in-toto statement", where=bundle.where, got=bundle.payload_type
        )
    return read_statement(bundle.payload, bundle.where)


def _word(claim: Claim) -> list[Problem]:
    """Everything in a claim that is not a pass."""
    problems = []
    reasons = [reason.outcome for reason in claim.verdict.reasons]
    outcome = worst([claim.verdict.outcome, worst(reasons)])  # a pass for no reason is none
    if outcome != "pass":
        against = [reason.code for reason in claim.verdict.reasons if reason.outcome != "pass"]
        why = listed(against) or ("its reasons" if reasons else "no check was made")
        problems.append(Problem("outcome", f"the verdict is {outcome}: {why}"))
    problems += [
        Problem("chain", f"it hangs from {above.label}, whose verdict is {above.outcome}")
        for above in claim.verdict.chain
        if above.outcome not in ("pass", None)
    ]
    return problems


def _held_against(claim: Claim, path: Path) -> tuple[bool | None, list[Problem]]:
    if not path.exists():
        raise AssayError("no such artifact", where=str(path))
    try:
        artifact = open_artifact(path, verify=True)
    except AssayError as error:  # something is there, and it is not what was signed
        return None, [Problem("artifact", f"{error.what}: {error.got or error.where}")]
    bare = artifact.foreign and path.is_file()  # a folder that has lost its manifest is not whole
    problems = bare_mismatches(claim, artifact) if bare else mismatches(claim, artifact)
    if problems:
        return None, problems
    return claim.artifact.foreign or not bare, []


def mismatches(claim: Claim, artifact: Artifact) -> list[Problem]:
    """In which way an artifact is not the one of the claim. Its files must have been hashed just now."""
    problems = []
    if artifact.digest != claim.artifact.digest:
        problems.append(Problem("artifact", f"its digest is {artifact.digest}, {claim.artifact.digest} was signed"))
    found = {record.path: record.sha256 for record in artifact.manifest.files}
    if found != claim.files:
        other = sorted(name for name in found.keys() | claim.files.keys() if found.get(name) != claim.files.get(name))
        problems.append(Problem("artifact", f"these files are not those that were signed: {listed(other)}"))
    return problems


def bare_mismatches(claim: Claim, artifact: Artifact) -> list[Problem]:
    """In which way a lone model file, whatever its name, is not the only one of the claim's artifact."""
    (record,) = artifact.manifest.files
    signed = [sha256 for name, sha256 in claim.files.items() if name.endswith(".gguf")]
    if signed == [record.sha256]:
        return []
    told = f"{len(signed)} model files" if len(signed) != 1 else f"sha256 {signed[0]}"
    return [Problem("artifact", f"the sha256 of {record.path} is {record.sha256}; what was signed has {told}")]
