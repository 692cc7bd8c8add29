"""Writes safetensors shards block by block; every block is read back, compared and hashed as it is written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import FileRecord
from contract.errors import AssayError
from export.tensors.at_offset import begin_flush, read_at, write_at
from export.weights import FLOAT_DTYPES, INDEX_FILE, SINGLE_FILE

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BLOCKS_WAITING = 3  # made but not yet on disk: bounds memory
_FLUSH_BYTES = 16 << 20
Values = Callable[[str], Iterable["torch.Tensor"]]  # a tensor's name -> its rows, block by block


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its name, shape and dtype are known before its values are."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as torch names it: "float16" …

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * FLOAT_DTYPES[_SAFETENSORS_NAMES[self.dtype]]


def write_shards(
    folder: Path, planned: Sequence[PlannedTensor], values: Values, shard_bytes: int = SHARD_BYTES
) -> list[FileRecord]:
    """Write model.safetensors, or shards with an index, in name order, a few blocks in memory at a time.

    Args:
        folder: where to write.
        planned: what there will be.
        values: gives each tensor's rows, in its planned dtype.
        shard_bytes: the most bytes of values per file (one tensor may exceed it).

    Returns:
        Every weights file with the sha256 of the bytes that were read back from it.

    Raises:
        AssayError: there is not enough room, or a block does not read back as it was written.
        OSError: the disk is full, or fails.
    """
    refuse_without_room(folder, sum(tensor.size_bytes for tensor in planned))
    shards = _split(planned, shard_bytes)
    if len(shards) == 1:
        return [_write_file(folder / SINGLE_FILE, shards[0], values)]
    records = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        records.append(_write_file(folder / name, shard, values))
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.size_bytes for tensor in planned)
    (folder / INDEX_FILE).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    )
    return records


def refuse_without_room(folder: Path, needed: int) -> None:
    """Raise AssayError where fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssayError(
            "there is not enough room for the weights",
            where=str(folder.parent),
            expected=f"{needed / 1e6:.1f} MB",
            got=f"{free / 1e6:.1f} MB free",
        )


def _split(planned: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in sorted(planned, key=lambda tensor: tensor.name):
        if shards[-1] and filled + tensor.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    return shards


def _write_file(path: Path, planned: Sequence[PlannedTensor], values: Values) -> FileRecord:
    """The safetensors format: 8 bytes of header length, a JSON header, then the values back to back."""
    import torch

    with _CheckedFile(path) as file:
        file.add(torch.frombuffer(bytearray(_header(planned)), dtype=torch.uint8))
        for tensor in planned:
            before = file.size_bytes
            for block in values(tensor.name):
                assert str(block.dtype) == f"torch.{tensor.dtype}", tensor.name
                assert block.shape[1:] == tensor.shape[1:], tensor.name
                file.add(block)
            assert file.size_bytes - before == tensor.size_bytes, tensor.name
    return FileRecord(path.name, file.sha256, file.size_bytes)


def _header(planned: Iterable[PlannedTensor]) -> bytes:
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
    return len(text).to_bytes(8, "little") + text


class _CheckedFile:
    """A new file: one thread writes each block, another reads it back, compares and hashes what was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self.sha256 = ""

    def __enter__(self) -> _CheckedFile:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._begun = 0  # bytes whose way to the disk has begun
        self._hash = hashlib.sha256()
        self._back = bytearray()
        self._writing, self._checking = ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future[Future[None]]] = deque()
        return self

    def add(self, block: torch.Tensor) -> None:
        """Append a block's bytes; what went wrong with an earlier one is raised here, or at the end."""
        while len(self._waiting) >= _BLOCKS_WAITING:
            self._waiting.popleft().result().result()
        self._waiting.append(self._writing.submit(self._store, block.contiguous(), self.size_bytes))
        self.size_bytes += block.numel() * block.element_size()

    def _store(self, block: torch.Tensor, offset: int) -> Future[None]:
        import torch

        data = block.reshape(-1).view(torch.uint8).numpy().data
        write_at(self._descriptor, data, offset)
        return self._checking.submit(self._check, data, offset)

    def _check(self, data: memoryview, offset: int) -> None:
        if len(self._back) != len(data):  # most blocks are of one size; comparing bytearrays is what is fast
            self._back = bytearray(len(data))
        if read_at(self._descriptor, memoryview(self._back), offset) != len(data) or self._back != data:
            raise AssayError(
                "a weights file does not read back as it was written",
                where=f"{self.path.name}, byte {offset}",
                hint="look at the disk and the memory of this machine",
            )
        self._hash.update(self._back)
        self._flush(offset + len(data))

    def _flush(self, done: int) -> None:
        if done - self._begun >= _FLUSH_BYTES:
            begin_flush(self._descriptor, self._begun, done - self._begun)
            self._begun = done

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result().result()
        finally:
            for thread in (self._writing, self._checking):
                thread.shutdown(wait=True, cancel_futures=True)
            os.close(self._descriptor)
        self.sha256 = self._hash.hexdigest()
