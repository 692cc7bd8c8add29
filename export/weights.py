"""Reads and writes safetensors shards tensor by tensor, so that no model is ever in memory whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contract.errors import AssayError, listed
from contract.model_folder import read_json

if TYPE_CHECKING:
    import torch

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
FLOAT_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # safetensors name -> bytes per value
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Weights(Protocol):
    """Named tensors that are read one at a time."""

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


@dataclass
class FolderWeights:
    """The safetensors weights of a Hugging Face folder: one file, or shards with an index."""

    folder: Path
    files: dict[str, Path]  # tensor name -> shard
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> FolderWeights:
        """Find the shards.

        Raises:
            AssayError: there are none, or index and shards disagree; every disagreement is named.
        """
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        if single.is_file():
            return cls(folder, dict.fromkeys(_names_in(single), single))
        if not index.is_file():
            raise AssayError(
                "there are no weights here",
                where=str(folder),
                expected=f"{SINGLE_FILE} or {INDEX_FILE}",
                hint="weights are read from safetensors only",
            )
        weight_map: dict[str, str] = read_json(index).get("weight_map", {})
        problems = []
        present: dict[str, set[str]] = {}
        for shard in sorted(set(weight_map.values())):
            path = folder / shard
            if Path(shard).name != shard or not path.is_file():
                problems.append(f"{shard}: no such shard")
                continue
            present[shard] = set(_names_in(path))
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
        return cls(folder, {name: folder / shard for name, shard in weight_map.items()})

    @classmethod
    def of_file(cls, path: Path) -> FolderWeights:
        """The tensors of one safetensors file."""
        return cls(path.parent, dict.fromkeys(_names_in(path), path))

    def _slice(self, name: str) -> Any:
        return self._shard(name).get_slice(name)

    def _shard(self, name: str) -> Any:
        from safetensors import safe_open

        path = self.files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The stored dtype as safetensors names it."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype."""
        tensor: torch.Tensor = self._shard(name).get_tensor(name)
        return tensor


def _names_in(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as shard:
            return list(shard.keys())
    except (SafetensorError, OSError) as error:
        raise AssayError(
            "a weights file cannot be read",
            where=str(path),
            got=str(error),
            hint="it may be cut short: download or save it again",
        ) from None


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its name, shape and dtype are known before its values are."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as torch names it: "float16" …

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        size = FLOAT_DTYPES[_SAFETENSORS_NAMES[self.dtype]]
        for extent in self.shape:
            size *= extent
        return size


def write_shards(
    folder: Path,
    planned: Sequence[PlannedTensor],
    values: Callable[[str], torch.Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards with an index, in name order, one tensor in memory at a time.

    Args:
        folder: where to write.
        planned: what there will be.
        values: gives each tensor, in its planned dtype and shape.
        shard_bytes: the most bytes of values per file (one tensor may exceed it).
    """
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in sorted(planned, key=lambda tensor: tensor.name):
        if shards[-1] and filled + tensor.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    if len(shards) == 1:
        _write_file(folder / SINGLE_FILE, shards[0], values)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, values)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.size_bytes for tensor in planned)
    (folder / INDEX_FILE).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    )


def _write_file(path: Path, planned: Iterable[PlannedTensor], values: Callable[[str], torch.Tensor]) -> None:
    """The safetensors format: 8 bytes of header length, a JSON header, then the values back to back."""
    import torch

    planned = list(planned)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in planned:
        header[tensor.name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size_bytes],
        }
        offset += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in planned:
            value = values(tensor.name)
            assert tuple(value.shape) == tensor.shape, tensor.name
            assert str(value.dtype) == f"torch.{tensor.dtype}", tensor.name
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)
