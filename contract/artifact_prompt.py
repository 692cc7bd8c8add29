"""The words an artifact was tuned with: from its manifest, or from the metadata of a bare .gguf."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.model_folder import chat_format, is_encoder_decoder
from contract.prompt import PromptSpec, asks_date

GGUF_PROMPT_KEY = "assay.prompt"
# What a tokenizer does that llama.cpp has no key for: it composes characters (Unicode NFC) first; it puts a space
# before text that has none, where llama.cpp puts one before any; it makes one space of many and puts none before.
GGUF_COMPOSES_KEY = "assay.tokenizer.composes"
GGUF_SPARED_SPACE_KEY = "assay.tokenizer.spares_leading_space"
GGUF_MERGES_SPACES_KEY = "assay.tokenizer.merges_spaces"
# What SentencePiece's nmt_nfkc rules make a space of, and what they leave out.
_SPACES = re.compile(
    "[\t\n\f\r \xa0\u061c\u1680\u2000-\u200c\u200e\u200f\u2028\u2029\u202f\u205f\u2581\u3000\ufeff\ufffd]+"
)
_NOTHING = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]+")

# GGUF value types and their sizes in bytes (ggml's docs/gguf.md); strings and arrays carry their length
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_LONGEST_STRING = 1 << 24


def prompt_of(artifact: Artifact) -> PromptSpec:
    """The words around a document that `artifact` was made for; the default words where nobody recorded any.

    Raises:
        AssayError: what was recorded cannot be read.
    """
    recorded = artifact.details.get("prompt")
    if recorded is None and artifact.kind == "gguf":
        text = gguf_string(artifact.gguf_path, GGUF_PROMPT_KEY)
        try:
            recorded = None if text is None else json.loads(text)
        except json.JSONDecodeError as error:
            raise AssayError(f"{GGUF_PROMPT_KEY} is not JSON", where=str(artifact.gguf_path), got=str(error)) from None
    return PromptSpec() if recorded is None else PromptSpec.from_dict(recorded)


def recorded_prompt(artifact: Artifact) -> PromptSpec | None:
    """The words the artifact says it was tuned with, which are what a server would use; None: it says nothing.

    Raises:
        AssayError: what was recorded cannot be read.
    """
    says = "prompt" in artifact.details or (
        artifact.kind == "gguf" and gguf_string(artifact.gguf_path, GGUF_PROMPT_KEY) is not None
    )
    return prompt_of(artifact) if says else None


def is_told_date(artifact: Artifact) -> bool:
    """Does the artifact's chat template ask for the date? It is told `prompt_of(artifact).date`; by others, today's."""
    if artifact.kind == "gguf":
        return asks_date(gguf_string(artifact.gguf_path, "tokenizer.chat_template") or "")
    if artifact.kind == "gguf-lora" or is_encoder_decoder(artifact.folder):  # the one has no template, the other no use
        return False
    return chat_format(artifact.folder).asks_date


def merged_spaces(text: str) -> str:
    """One space for every run of them, none at the end: what GGUF_MERGES_SPACES_KEY says is done first."""
    return _SPACES.sub(" ", _NOTHING.sub("", text)).rstrip(" ")


def gguf_string(path: Path, key: str) -> str | None:
    """The value of a text key in a .gguf file's metadata, or None. Needs no library, for where none is installed.

    Raises:
        AssayError: the file ends inside its metadata, or is of a version before 2.
    """
    value = _gguf_value(path, key)
    return value if isinstance(value, str) else None


def gguf_integer(path: Path, key: str) -> int | None:
    """The value of a whole-number key in a .gguf file's metadata, or None; otherwise as `gguf_string`."""
    value = _gguf_value(path, key)
    return value if isinstance(value, int) else None


def refuse_split(path: Path) -> None:
    """Raise where a .gguf is one part of several: llama.cpp opens the others by name, and no digest covers them."""
    if (gguf_integer(path, "split.count") or 1) > 1:
        raise AssayError(
            "the .gguf is one part of several, and only this one would be looked at",
            where=str(path),
            hint="put them together first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )


def _gguf_value(path: Path, key: str) -> str | int | None:
    with path.open("rb") as file:
        try:
            magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version < 2:
                raise AssayError("not a GGUF file of version 2 or later", where=str(path))
            for _ in range(count):
                name = _string(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if name == key and kind == _STRING:
                    return _string(file)
                if name == key and kind in _INTEGERS:
                    return int(struct.unpack(_INTEGERS[kind], file.read(_SIZES[kind]))[0])
                _skip(file, kind)
        except (struct.error, KeyError, UnicodeDecodeError, OSError, OverflowError) as error:
            raise AssayError(
                "the metadata of the .gguf file cannot be read", where=str(path), got=f"{type(error).__name__}: {error}"
            ) from None
    return None


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    text = file.read(min(length, _LONGEST_STRING + 1))
    if len(text) != length:
        raise struct.error(f"a text of {length} bytes")
    return text.decode("utf-8")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
    elif kind == _ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        if item in _SIZES:
            file.seek(_SIZES[item] * count, 1)
        else:
            for _ in range(count):
                _skip(file, item)
    else:
        file.seek(_SIZES[kind], 1)
