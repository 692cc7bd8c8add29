"""Ed25519 keys in PEM files: the private one that signs, the public one that verifies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

PASSWORD_VARIABLE = "ASSAY_KEY_PASSWORD"
_MOST_BYTES = 1 << 16  # a PEM file of one key has about 120
_MAKE = "openssl genpkey -algorithm ed25519 -out assay.key"
_DERIVE = "openssl pkey -in assay.key -pubout -out assay.pub"


def read_private_key(path: Path) -> CryptoSigner:
    """The key that signs: ed25519, PKCS8 in PEM; if it is encrypted, ASSAY_KEY_PASSWORD opens it.

    Raises:
        AssayError: the file is not such a key, or the password is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = _pem(path)
    password = os.environ.get(PASSWORD_VARIABLE) or None
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data
    if not encrypted and b"-----BEGIN PRIVATE KEY-----" not in data:
        raise _not_a_key(path, "a private key: ed25519, PKCS8 in PEM", _MAKE)
    if encrypted and password is None:
        raise AssayError(
            "the signing key is encrypted, and there is no password for it",
            where=str(path),
            hint=f"set {PASSWORD_VARIABLE} in the environment",
        )
    try:
        key = load_pem_private_key(data, password.encode() if encrypted and password else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # what they say may quote the key
        if encrypted:
            raise AssayError(
                "the signing key cannot be opened: the password is wrong, or the file damaged",
                where=str(path),
                hint=f"the password is taken from {PASSWORD_VARIABLE}",
            ) from None
        raise _not_a_key(path, "a private key: ed25519, PKCS8 in PEM", _MAKE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_algorithm(path, type(key).__name__, _MAKE)
    return CryptoSigner(key)


def read_public_key(path: Path) -> SSlibKey:
    """The key that verifies: ed25519 in PEM, as `openssl pkey -pubout` writes it.

    Raises:
        AssayError: the file is not such a key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    data = _pem(path)
    if b"PRIVATE KEY-----" in data:
        raise AssayError(
            "this is a private key: it signs, and stays where it signs",
            where=str(path),
            expected="a public key",
            hint=_DERIVE,
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _not_a_key(path, "a public key: ed25519 in PEM", _DERIVE) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _other_algorithm(path, type(key).__name__, _MAKE)
    return SSlibKey.from_crypto(key)


def _pem(path: Path) -> bytes:
    if not path.is_file():
        raise AssayError("there is no key", where=str(path))
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise AssayError("this file is too large for a key", where=str(path), expected=f"at most {_MOST_BYTES} bytes")
    if data.count(b"-----BEGIN ") > 1:
        raise AssayError("there is more than one thing in the key's file", where=str(path), expected="one key")
    return data


def _not_a_key(path: Path, expected: str, hint: str) -> AssayError:
    return AssayError("this is not a key that can be used", where=str(path), expected=expected, hint=hint)


def _other_algorithm(path: Path, name: str, hint: str) -> AssayError:
    return AssayError(
        "the key is for another algorithm", where=str(path), expected="ed25519", got=name.lstrip("_"), hint=hint
    )
