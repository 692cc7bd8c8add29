"""Is there anything in a document to summarize: one rule for the command line and for HTTP."""

from __future__ import annotations

import unicodedata

from contract.errors import AssayError


def refuse_blank(document: str) -> None:
    """Raise where a document holds nothing that a reader would see.

    White space, and format characters (Unicode category Cf: zero-width spaces and joiners, soft hyphens, direction
    marks, a byte order mark), are nothing; `str.strip` alone would let the latter pass for a text.

    Raises:
        AssayError: it is blank.
    """
    if all(character.isspace() or unicodedata.category(character) == "Cf" for character in document):
        raise AssayError("the document is empty", hint="it has no character but white space and invisible ones")
