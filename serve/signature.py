"""Is there a signed pass on this artifact: for `assay serve --require-signature`."""

from __future__ import annotations

from pathlib import Path

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.history import known_history, standing
from contract.plain import plain
from contract.signed import examine, mismatches, read_bundle
from contract.signing_key import read_public_key
from contract.statement import Claim


class UnsignedError(AssayError):
    """The key's owner has not said that this artifact passed."""

    exit_code = 1


def refuse_unsigned(artifact: Artifact, key: Path, bundle: Path | None = None) -> Claim:
    """The signed pass on exactly this artifact.

    Args:
        artifact: what is about to be served; its files are hashed again here.
        key: the file of the public key that is trusted.
        bundle: the file of the signed verdict; None takes the one beside the artifact.

    Raises:
        AssayError: the key or the bundle cannot be read, or the artifact's files are not what its manifest says.
        UnsignedError: there is no bundle, or it does not prove, by this key, a pass of these bytes.
    """
    trusted = read_public_key(key)
    path = bundle or artifact.signed_path
    if bundle is None and not path.is_file():
        raise UnsignedError(
            f"{artifact.name} is not proven: there is no signed verdict",
            where=str(path),
            hint="sign it where it was evaluated: assay gate EVAL_DIR --sign KEY, or give the file with --bundle",
        )
    artifact.verify()
    examined = examine(read_bundle(path), trusted)
    claim = examined.claim
    against = [*examined.problems, *(mismatches(claim, artifact) if claim else ())]
    if against or claim is None:
        bare = claim is not None and artifact.foreign and not claim.artifact.foreign
        raise UnsignedError(
            f"{artifact.name} is not proven: the signed verdict does not say so",
            where=str(path),
            got="\n    ".join(f"{problem.code}: {plain(problem.text)}" for problem in against),
            hint="serve the whole folder: its manifest has the prompt, and was signed too" if bare else None,
        )
    return claim


def has_word(artifact: Artifact) -> bool:
    """Is there a verdict on this artifact in the verdict file beside it? Where there is none a signature may do.

    Raises:
        AssayError: the file is damaged.
    """
    return standing(known_history(artifact.verdict_path), artifact.digest) is not None
