"""What an evaluation has found so far, kept under everything it depends on: nothing is measured twice.

Beside the evaluation lies cache/: KIND-KEY.json for what was found, KEY.f32 for logits that others are held against. A
key is a digest of all that goes into a figure, so an entry is never out of date, only unused. An interrupted evaluation
goes on from here, and one more artifact costs only its own scoring. The folder may be deleted at any time.

An entry says which one it is, and the checksum of both: one that was half written, edited, or copied here under another
name is as good as none, and is measured again. It is a guard against accidents. Whoever edits an entry and computes the
checksum anew is believed, as is whoever edits metrics.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from contract.artifact import tool_versions
from contract.errors import AssayError
from contract.files import alone, write_whole
from contract.typed import from_json
from evalsuite.distance import CHECKSUM, checksum_path
from evalsuite.results import RESULTS_SCHEMA

CACHE_FOLDER = "cache"
KEEP_LOGITS_BYTES = 1_000_000_000  # logits over this are not kept once an evaluation is complete
_LOCK_FILE = ".lock"
_SCHEMA = 4
_ENGINES = (
    *("torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python"),
    *("onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy"),
)

Entry = TypeVar("Entry")


class Cache:
    """Entries of one evaluation folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()
        self._read: dict[str, Any] = {}  # entries that were read or written already, by file name
        self._common = {"schema": [_SCHEMA, RESULTS_SCHEMA], "versions": tool_versions(*_ENGINES)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AssayError("the output folder cannot be written", where=str(folder), got=str(error)) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else evaluates into this folder meanwhile: two would drop each other's entries.

        Raises:
            AssayError: somebody does.
        """
        refusal = AssayError(
            "another evaluation is being made in this folder",
            where=str(self._folder.parent),
            hint="wait for it, or give another --out",
        )
        with alone(self._folder / _LOCK_FILE, refusal):
            yield

    def key(self, **parts: Any) -> str:
        """The digest of what a figure depends on; versions of the engines are part of it."""
        text = json.dumps({**self._common, **parts}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def get(self, kind: str, key: str, wanted: type[Entry]) -> Entry | None:
        """The entry, or None where there is none that can be read."""
        path = self._folder / f"{kind}-{key}.json"
        self._used.add(path.name)
        if path.name in self._read:
            known: Entry = self._read[path.name]
            return known
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept != _sealed(path.stem, kept["entry"]):
                return None
            found: Entry = from_json(wanted, kept["entry"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return None
        self._read[path.name] = found
        return found

    def put(self, kind: str, key: str, entry: Any) -> None:
        """Keep a dataclass of plain values; whole or not at all."""
        path = self._folder / f"{kind}-{key}.json"
        self._used.add(path.name)
        text = json.dumps(_sealed(path.stem, json.loads(json.dumps(asdict(entry)))))
        if path.is_dir():
            _remove(path)  # what is no entry is in the way of one
        write_whole(path, text, durable=False)  # torn by a power cut it is measured again
        self._read[path.name] = entry

    def forget(self, kind: str) -> None:
        """Drop every entry of that kind."""
        for path in self._folder.glob(f"{kind}-*.json"):
            _remove(path)
            self._read.pop(path.name, None)

    def logits_path(self, key: str) -> Path:
        """Where the logits of that key are spooled."""
        path = self._folder / f"{key}.f32"
        self._used |= {path.name, checksum_path(path).name}
        if path.is_dir():
            _remove(path)
        return path

    def tidy(self) -> None:
        """After a complete evaluation: drop what it did not use, and the logits if they are large."""
        logits = [path for path in self._folder.glob("*.f32") if path.name in self._used]
        keep_logits = sum(path.stat().st_size for path in logits) <= KEEP_LOGITS_BYTES
        for path in self._folder.iterdir():
            large = path.name.removesuffix(CHECKSUM).endswith(".f32")
            if path.name not in {*self._used, _LOCK_FILE} or (large and not keep_logits):
                _remove(path)


def _sealed(name: str, entry: Any) -> dict[str, Any]:
    """An entry as it is kept: with its name and the checksum of both."""
    text = json.dumps([name, entry], sort_keys=True)
    return {"name": name, "sha256": hashlib.sha256(text.encode()).hexdigest(), "entry": entry}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
