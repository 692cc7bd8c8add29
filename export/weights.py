"""Reads safetensors shards some rows at a time, so that no model, and no large tensor, is ever in memory whole."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contract.errors import AssayError, listed
from contract.model_folder import read_json
from export.tensors.at_offset import read_at

if TYPE_CHECKING:
    import torch

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FLOAT_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # safetensors name -> bytes per value
BLOCK_VALUES = 1 << 18  # values handled at once: in float32 few enough for a processor's second-level cache
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_BYTES = {**FLOAT_DTYPES, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER_BYTES = 100_000_000


class Weights(Protocol):
    """Named tensors that are read one at a time, whole or by blocks of rows."""

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> str:
        """The dtype `read` returns, as safetensors names it: "F16", "BF16", "F32" …"""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor."""
        ...

    def blocks(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """The tensor a multiple of so many rows at a time, each with its first row's number."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    file: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file


@dataclass
class FolderWeights:
    """The safetensors weights of a Hugging Face folder: one file, or shards with an index.

    Values are read, not mapped: a mapped page counts as memory for as long as the file is open.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    _open: dict[Path, io.FileIO] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> FolderWeights:
        """Find the shards.

        Raises:
            AssayError: there are none, or index and shards disagree; every disagreement is named.
        """
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        if single.is_file():
            return cls(folder, tensors_in(single))
        if not index.is_file():
            raise AssayError(
                "there are no weights here",
                where=str(folder),
                expected=f"{SINGLE_FILE} or {INDEX_FILE}",
                hint="weights are read from safetensors only",
            )
        weight_map: dict[str, str] = read_json(index).get("weight_map", {})
        problems = []
        present: dict[str, dict[str, StoredTensor]] = {}
        for shard in sorted(set(weight_map.values())):
            path = folder / shard
            if Path(shard).name != shard or not path.is_file():
                problems.append(f"{shard}: no such shard")
                continue
            present[shard] = tensors_in(path)
            problems += [
                f"{name}: in {shard} but not in the index"
                for name in sorted(present[shard])
                if weight_map.get(name) != shard
            ]
        problems += [
            f"{name}: not in {shard}"
            for name, shard in sorted(weight_map.items())
            if shard in present and name not in present[shard]
        ]
        if problems or not weight_map:
            raise AssayError(
                "the shards and their index disagree",
                where=str(index),
                got=listed(problems, 20) or "an empty index",
                hint="download or save the model again",
            )
        return cls(folder, {name: present[shard][name] for name, shard in weight_map.items()})

    @classmethod
    def of_file(cls, path: Path) -> FolderWeights:
        """The tensors of one safetensors file."""
        return cls(path.parent, tensors_in(path))

    def renamed(self, names: Mapping[str, str]) -> FolderWeights:
        """The same tensors under other names (stored name -> name); those without one are left out."""
        return FolderWeights(self.folder, {new: self.tensors[old] for old, new in names.items()})

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """The stored dtype as safetensors names it."""
        return self.tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype."""
        shape = self.shape(name)
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor, in its stored dtype; a scalar is one row.

        Raises:
            AssayError: a dtype torch does not have, or a file cut short since it was opened.
        """
        import torch

        tensor = self.tensors[name]
        if tensor.dtype not in _TORCH_NAMES:
            raise AssayError("a tensor of an unknown dtype", where=f"{tensor.file}: {name}", got=tensor.dtype)
        dtype = getattr(torch, _TORCH_NAMES[tensor.dtype])
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        row_bytes = math.prod(tensor.shape[1:]) * dtype.itemsize
        values = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        self._fill(tensor.file, values.numpy().data, tensor.offset + start * row_bytes)
        return values.view(dtype).reshape(shape)

    def blocks(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """The tensor a multiple of so many rows (about BLOCK_VALUES values) at a time, with the first one's number."""
        shape = self.shape(name)
        count = shape[0] if shape else 1
        step = rows_per_block(shape, multiple)
        for start in range(0, count, step):
            yield start, self.read_rows(name, start, min(start + step, count))

    def _fill(self, path: Path, view: memoryview, offset: int) -> None:
        if path not in self._open:
            self._open.setdefault(path, io.FileIO(path))  # another thread may have been quicker
        descriptor = self._open[path].fileno()
        if read_at(descriptor, view, offset) != len(view):
            raise AssayError("a weights file was cut short while it was read", where=str(path))


def rows_per_block(shape: tuple[int, ...], multiple: int = 1) -> int:
    """How many rows are handled at once: a multiple of so many, of about BLOCK_VALUES values."""
    rows = BLOCK_VALUES // max(1, math.prod(shape[1:]))
    return max(1, rows // multiple) * multiple


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    """The header of a safetensors file: 8 bytes of length, then JSON; values follow back to back.

    Raises:
        AssayError: it is none, or it is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"its header would be {length} bytes long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {
            name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes, its header says {end}")
        _refuse_extents(header)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssayError(
            "a weights file cannot be read",
            where=str(path),
            got=str(error),
            hint="it may be cut short: download or save it again",
        ) from None
    return found


def _refuse_extents(header: dict[str, Any]) -> None:
    """Raise ValueError where a tensor's bytes are not what its shape and dtype need."""
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        size = _BYTES.get(entry["dtype"])
        if size and end - begin != math.prod(entry["shape"]) * size:
            raise ValueError(f"{name} has {end - begin} bytes for {entry['shape']} of {entry['dtype']}")
