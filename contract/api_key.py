"""The API key in a file: what a server asks its clients for, and what a client sends."""

from __future__ import annotations

from pathlib import Path

from contract.errors import AssayError


def read_api_key(path: Path) -> bytes:
    """The one word that the file holds.

    Raises:
        AssayError: the file cannot be read, is empty, or holds more than one word.
    """
    try:
        words = path.read_bytes().split()
    except OSError as error:
        raise AssayError("the API key file cannot be read", where=str(path), got=error.strerror) from None
    if len(words) != 1:
        raise AssayError(
            "the API key file must hold one key",
            where=str(path),
            expected="one word",
            got="nothing" if not words else f"{len(words)} words",
            hint="python -c 'import secrets; print(secrets.token_urlsafe())' > FILE",
        )
    return words[0]
