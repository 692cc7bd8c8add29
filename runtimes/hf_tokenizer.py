"""transformers' tokenizer of a folder, or what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.errors import AssayError
from contract.fast_tokenizer import load_fast

_UNREAD = "is tokenizer.json whole, and the installed version of `tokenizers` new enough for it?"


def load_tokenizer(folder: Path, where: str | None = None) -> Any:
    """The Hugging Face tokenizer of a folder.

    Args:
        folder: with the tokenizer's files.
        where: for messages, where the files are copies; the folder by default.

    Raises:
        AssayError: there is none, it cannot be read, or it needs code of its own.
    """
    where = where or str(folder)
    try:
        return load_fast(folder)
    except AssayError as error:
        raise AssayError(error.what, where=where, expected=error.expected, got=error.got, hint=error.hint) from None
    except Exception as error:  # what `tokenizers` raises has no narrower type
        raise AssayError(
            "the tokenizer cannot be loaded",
            where=where,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            hint=_UNREAD if type(error) in (Exception, json.JSONDecodeError) else None,
        ) from None
