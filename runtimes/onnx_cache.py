"""The key-value cache of rows that are decoded together: two sets of buffers, read and written in turn.

A graph that keeps its cache as inputs and outputs writes the whole of it anew at every step. It is bound to these
buffers by address, so that nothing of it is made, copied or freed outside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import onnxruntime

from runtimes.onnx_sessions import CacheEntry


class Buffer(Protocol):
    """Memory that a graph reads or writes."""

    device: str
    address: int

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """Its first numbers as an array; whether that is a copy depends on the device."""
        ...

    def take(self, source: np.ndarray, rows: np.ndarray) -> None:
        """Write these rows of `source` from the buffer's start on."""
        ...


class HostBuffer:
    """In the process's own memory. Pages that are never written are never backed."""

    device = "cpu"

    def __init__(self, count: int, dtype: np.dtype[Any]) -> None:
        self._flat = np.empty(count, dtype)
        self.address = int(self._flat.ctypes.data)

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """A view."""
        return self._flat[: prod(shape)].reshape(shape)

    def take(self, source: np.ndarray, rows: np.ndarray) -> None:
        """Rows of another buffer's view."""
        shape = (len(rows), *source.shape[1:])
        np.take(source, rows, axis=0, out=self.read(shape), mode="clip")


class CudaBuffer:
    """On the first CUDA device. Rows are reordered by way of the host."""

    device = "cuda"

    def __init__(self, count: int, dtype: np.dtype[Any]) -> None:
        self._count = max(1, count)
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([self._count], dtype.type, "cuda", 0)
        self.address = int(self._value.data_ptr())

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """A copy."""
        return self._value.numpy()[: prod(shape)].reshape(shape)

    def take(self, source: np.ndarray, rows: np.ndarray) -> None:
        """Rows of another buffer's copy."""
        flat = np.zeros(self._count, source.dtype)
        picked = source[rows].ravel()
        flat[: picked.size] = picked
        self._value.update_inplace(flat)


class KvCache:
    """Keys and values of `rows` sequences, [rows, heads, used cells, size] each; room for `cells` cells."""

    def __init__(self, entries: Sequence[CacheEntry], device: str, rows: int, cells: int) -> None:
        self._entries, self._device = entries, device
        self._cells = cells
        self.rows, self.used = rows, 0
        self._room = 0
        self._now: list[Buffer] = []  # what is read
        self._next: list[Buffer] = []  # what is written
        self._make_room(rows)

    def _make_room(self, rows: int) -> None:
        self._room = rows
        self._now, self._next = ([self._buffer(entry, rows) for entry in self._entries] for _ in range(2))

    def _buffer(self, entry: CacheEntry, rows: int) -> Buffer:
        made = HostBuffer if self._device == "cpu" else CudaBuffer
        return made(rows * entry.heads * self._cells * entry.size, entry.dtype)

    def bind_past(self, binding: Any) -> None:
        """Let a graph read it."""
        rows, used = self.rows, self.used
        for entry, buffer in zip(self._entries, self._now, strict=True):
            shape = (rows, entry.heads, used, entry.size)
            binding.bind_input(entry.past, buffer.device, 0, entry.dtype.type, shape, buffer.address)

    def bind_present(self, binding: Any, more: int) -> None:
        """Let a graph write it, `more` cells longer. `advance` must follow the run."""
        rows, used = self.rows, self.used + more
        for entry, buffer in zip(self._entries, self._next, strict=True):
            shape = (rows, entry.heads, used, entry.size)
            binding.bind_output(entry.present, buffer.device, 0, entry.dtype.type, shape, buffer.address)

    def advance(self, more: int) -> None:
        """What was written is what is read from now on."""
        self._now, self._next = self._next, self._now
        self.used += more

    def keep(self, rows: np.ndarray) -> None:
        """These rows only, int64 [any], in this order, some perhaps several times."""
        sources = [
            buffer.read((self.rows, entry.heads, self.used, entry.size))
            for entry, buffer in zip(self._entries, self._now, strict=True)
        ]
        if len(rows) > self._room:
            self._make_room(len(rows))
        for buffer, source in zip(self._next, sources, strict=True):
            buffer.take(source, rows)
        self._now, self._next = self._next, self._now
        self.rows = len(rows)
