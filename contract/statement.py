"""What a signed verdict claims, as an in-toto Statement v1 and back (in-toto.io/Statement/v1)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from contract.artifact import Artifact, Kind, tool_versions
from contract.errors import AssayError
from contract.files import refuse_constant
from contract.plain import plain
from contract.typed import from_json
from contract.verdict import Basis, Verdict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# A name and no address: nothing is looked up there. Its number goes up when the predicate's fields change.
PREDICATE_TYPE = "urn:assay:verdict:1"


@dataclass(frozen=True)
class About:
    """The artifact of a claim. `digest` covers its manifest, `files_digest` the files alone (Artifact, Manifest)."""

    kind: Kind
    name: str
    digest: str
    files_digest: str
    foreign: bool  # Assay did not make it: there is no manifest, and both digests are the same


@dataclass(frozen=True)
class RestsOn:
    """A Basis without the documents themselves: how many, and the sha256 over their sorted keys."""

    data_sha256: str
    documents: int
    documents_sha256: str
    limits: dict[str, Any]
    generate: dict[str, Any]
    versions: dict[str, str]  # package -> version
    time_utc: str  # when the evaluation began, as its machine's clock said
    metrics_sha256: str | None

    @classmethod
    def of(cls, basis: Basis) -> RestsOn:
        """What a verdict's basis comes to."""
        keys = json.dumps(sorted(basis.documents)).encode()
        return cls(
            basis.data_sha256,
            len(basis.documents),
            hashlib.sha256(keys).hexdigest(),
            basis.limits,
            basis.generate,
            basis.versions,
            basis.time_utc,
            basis.metrics_sha256,
        )


@dataclass(frozen=True)
class Claim:
    """An artifact, the verdict on it, what that rests on, and the artifact's files: path below its folder -> sha256."""

    artifact: About
    verdict: Verdict
    basis: RestsOn
    assay: str  # the version that made the claim
    files: dict[str, str]

    @classmethod
    def of(cls, artifact: Artifact, verdict: Verdict, basis: Basis) -> Claim:
        """The claim that `verdict` makes of an artifact that lies here."""
        about = About(artifact.kind, artifact.name, artifact.digest, artifact.manifest.files_digest, artifact.foreign)
        files = {record.path: record.sha256 for record in artifact.manifest.files}
        return cls(about, verdict, RestsOn.of(basis), tool_versions().get("assay", "unknown"), files)


class ForeignStatementError(AssayError):
    """A statement of something else than a verdict of Assay's."""

    exit_code = 1


def write_statement(claim: Claim) -> bytes:
    """The claim as the JSON of a statement, always the same for the same claim: its subjects are the artifact's files.

    Raises:
        ValueError: a number in it is not finite.
    """
    predicate = asdict(claim)
    files: dict[str, str] = predicate.pop("files")
    body = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_statement(payload: bytes, where: str) -> Claim:
    """The claim that `write_statement` wrote.

    Raises:
        ForeignStatementError: it states something else.
        AssayError: it is no JSON of ours: damaged, with a name twice, or with a number that is not finite.
    """
    try:
        body = strict_json(payload)
        stated = body["_type"], body["predicateType"]
        if stated == (STATEMENT_TYPE, PREDICATE_TYPE):
            return _claim(body)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise AssayError(
            "the signed statement cannot be read", where=where, got=plain(f"{type(error).__name__}: {error}")
        ) from None
    raise ForeignStatementError(
        "it states something else than a verdict of Assay's",
        where=where,
        expected=f"{STATEMENT_TYPE} with {PREDICATE_TYPE}",
        got=" with ".join(map(str, stated)),
    )


def _claim(body: dict[str, Any]) -> Claim:
    files: dict[str, str] = {}
    for subject in body["subject"]:
        if set(subject) != {"name", "digest"} or set(subject["digest"]) != {"sha256"} or subject["name"] in files:
            raise ValueError(f"not a subject, or one that is there twice: {subject}")
        files[subject["name"]] = subject["digest"]["sha256"]
    if "files" in body["predicate"]:
        raise ValueError("files belong among the subjects")
    claim: Claim = from_json(Claim, {**body["predicate"], "files": files})
    if not files or claim.verdict.digest != claim.artifact.digest:
        raise ValueError("the verdict is not on the artifact that is named")
    return claim


def strict_json(data: bytes) -> Any:
    """JSON with every name once and finite numbers only.

    Raises:
        ValueError: it is not.
        RecursionError: it is nested too deeply.
    """
    return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=refuse_constant, parse_float=_finite)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number
