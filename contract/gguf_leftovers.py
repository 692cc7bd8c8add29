"""What transformers leaves of a GGUF that it loaded and saved: a copy of the file, or a tokenizer of two kinds at once.

transformers 4 saves the GGUF once more under the name of a vocabulary (tokenizer.model), and gives a byte-level BPE the
decoder and the byte fallback of SentencePiece. The first is left aside where a tokenizer.json is there; the second
names other tokens for the end of a text than the GGUF does, and nothing in the folder says which are right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.errors import AssayError
from contract.model_folder import TOKENIZER_FILES, import_command, read_json

_MAGIC = b"GGUF"
_COPIES = ("tokenizer.model", "spiece.model")


def is_gguf(path: Path) -> bool:
    """Is this file a GGUF, whatever its name?"""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def tokenizer_files(folder: Path) -> list[str]:
    """The names of a folder's tokenizer files, without a vocabulary that is a copy of the GGUF it came from."""
    return [name for name in TOKENIZER_FILES if (folder / name).is_file() and not is_gguf(folder / name)]


def refuse_leftovers(folder: Path) -> None:
    """Raise where a folder's tokenizer is what transformers made of a GGUF, and it cannot be told what it was.

    Raises:
        AssayError: with the command that makes a folder of the GGUF itself.
    """
    copy = next((folder / name for name in _COPIES if is_gguf(folder / name)), None)
    path = folder / "tokenizer.json"
    both = _is_of_two_kinds(read_json(path))
    if not both and (copy is None or path.is_file()):
        return
    raise AssayError(
        "the tokenizer is what transformers made of a GGUF, and is not the one in the GGUF",
        where=str(folder),
        got="a byte-level BPE with the byte fallback of SentencePiece" if both else f"{copy} is the GGUF itself",
        hint=import_command(copy or "FILE.gguf")
        + (f" (that file is a copy of the GGUF; {folder} is then not needed)" if copy else ""),
    )


def _is_of_two_kinds(tokenizer: dict[str, Any]) -> bool:
    """Are bytes written in both ways at once: as characters (ByteLevel), and as tokens of their own (byte fallback)?"""
    model = tokenizer.get("model") or {}
    steps = {step.get("type") for part in ("pre_tokenizer", "decoder") for step in _steps(tokenizer.get(part))}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and "ByteLevel" in steps


def _steps(part: Any) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    inner = part.get("pretokenizers") or part.get("decoders") or []
    return [part, *(step for step in inner if isinstance(step, dict))]
