"""A GGUF's tensors under a checkpoint's names: dequantized to float32, llama.cpp's layouts undone, rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from export.from_gguf.header import FLOAT_TYPES, Header, StoredRows
from export.gguf_family import GgufModel, Layout
from export.tensors.at_offset import read_at
from export.weights import rows_per_block

if TYPE_CHECKING:
    import torch

_DUPLICATE_HEADS = ("gpt2",)  # converters write the tied head of these a second time
_ROPE_FREQS = "rope_freqs.weight"
_CLOSE = 1e-5  # relative, between RoPE factors in the file and those that the configuration says


@dataclass(frozen=True)
class Taken:
    """A checkpoint's tensor: where it lies, its own shape, and how llama.cpp stores it."""

    stored: StoredRows
    shape: tuple[int, ...]
    layout: Layout


class GgufWeights:
    """The weights of a GGUF as `export.weights.Weights` has them, in float32.

    Dequantized with the gguf package's code, which gives the same bits on every machine.
    """

    def __init__(self, header: Header, tensors: Mapping[str, Taken]) -> None:
        self._header, self.tensors = header, tensors
        self._file = header.path.open("rb")

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Always "F32"."""
        return "F32"

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32."""
        import torch

        return torch.cat([rows for _, rows in self.blocks(name)])

    def blocks(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """The tensor a multiple of so many rows at a time, each with its first row's number."""
        taken = self.tensors[name]
        stored, layout = taken.stored, taken.layout
        count = stored.shape[0]
        if layout.transposed or len(stored.shape) == 1:
            yield 0, undone(self._rows(stored, 0, count), layout)
            return
        head = 1 if layout.heads is None else count // layout.heads
        step = rows_per_block(stored.shape, max(multiple, head))
        for start in range(0, count, step):
            yield start, undone(self._rows(stored, start, min(start + step, count)), layout, head)

    def raw(self, stored: StoredRows, start: int, stop: int) -> bytearray:
        """The bytes of some rows."""
        row_bytes = stored.size_bytes // stored.shape[0]
        data = bytearray((stop - start) * row_bytes)
        if read_at(self._file.fileno(), memoryview(data), stored.offset + start * row_bytes) != len(data):
            raise AssayError("the .gguf file was cut short while it was read", where=self._header.where)
        return data

    def _rows(self, stored: StoredRows, start: int, stop: int) -> torch.Tensor:
        import gguf
        import numpy as np
        import torch

        data = np.frombuffer(self.raw(stored, start, stop), np.uint8)
        kind = gguf.GGMLQuantizationType[stored.kind]
        if stored.kind == "F32":
            values = data.view(np.float32)
        elif stored.kind == "F16":
            values = data.view(np.float16).astype(np.float32)
        elif stored.kind == "BF16":
            return torch.frombuffer(data, dtype=torch.bfloat16).float().reshape(stop - start, *stored.shape[1:])
        else:
            values = gguf.quants.dequantize(data.reshape(stop - start, -1), kind)
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(stop - start, *stored.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def undone(rows: torch.Tensor, layout: Layout, head: int | None = None) -> torch.Tensor:
    """Rows of a GGUF as the checkpoint has them: the inverse of what `GgufTensor.blocks` does.

    Args:
        rows: whole heads of a tensor, float32; a transposed one comes whole.
        layout: how llama.cpp stores it.
        head: rows of a head; None: `rows` are all of them.
    """
    if layout.transposed:
        return rows.T.contiguous()
    if layout.heads is not None:
        rows = neighbours_to_halves(rows, len(rows) // (head or len(rows) // layout.heads))
    if layout.plus != 0.0 or layout.times != 1.0:
        rows = (rows - layout.plus) / layout.times
    return rows


def neighbours_to_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from llama.cpp's order of neighbouring pairs to Hugging Face's rotate-half order."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape).contiguous()


def take_tensors(model: GgufModel, header: Header) -> GgufWeights:
    """Find every tensor of `model` in the file.

    Raises:
        AssayError: naming every tensor that is missing, surplus or of another shape, and RoPE factors that the
            configuration does not give.
    """
    import gguf

    arch = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == model.arch)
    names: Any = gguf.get_tensor_name_map(arch, model.layers)
    problems: list[str] = []
    found: dict[str, Taken] = {}
    used: set[str] = set()
    for name, shape in model.shapes.items():
        stored_name = names.get_name(name, (".weight", ".bias"))
        stored = header.tensors.get(stored_name)
        layout = model.layout(name)
        used.add(stored_name)
        if stored is None:
            problems.append(f"{stored_name}: missing")
        elif stored.shape != (shape[::-1] if layout.transposed else shape):
            problems.append(f"{stored_name}: shape {list(stored.shape)}, the metadata says {list(shape)}")
        elif len(shape) == 1 and stored.kind not in FLOAT_TYPES:
            problems.append(f"{stored_name}: a vector stored as {stored.kind}")
        else:
            found[name] = Taken(stored, shape, layout)
    weights = GgufWeights(header, found)
    for name, values in model.computed.items():
        used.add(name)
        problems += _other_values(weights, name, header.tensors.get(name), values)
    for name in sorted(header.tensors.keys() - used):
        if name == _ROPE_FREQS and not _other_values(weights, name, header.tensors[name], None):
            continue
        if name == "output.weight" and model.arch in _DUPLICATE_HEADS and is_duplicate(header):
            continue
        problems.append(f"{name}: not a tensor of this architecture")
    if problems:
        raise AssayError("the tensors do not fit the file's metadata", where=header.where, got=listed(problems, 40))
    return weights


def vector(header: Header, name: str) -> list[float] | None:
    """A float32 vector of the file; None where there is none."""
    stored = header.tensors.get(name)
    if stored is None:
        return None
    if stored.kind != "F32" or len(stored.shape) != 1:
        raise AssayError("not a vector of float32", where=f"{header.where}: {name}", got=stored.kind)
    weights = GgufWeights(header, {name: Taken(stored, stored.shape, Layout())})
    try:
        return [float(value) for value in weights.read(name)]
    finally:
        weights.close()


def is_duplicate(header: Header) -> bool:
    """Is the output head, byte for byte, the embeddings?"""
    head, embedding = header.tensors.get("output.weight"), header.tensors.get("token_embd.weight")
    if head is None or embedding is None or (head.kind, head.shape) != (embedding.kind, embedding.shape):
        return False
    weights = GgufWeights(header, {})
    try:
        step = rows_per_block(head.shape)
        return all(
            weights.raw(head, start, min(start + step, head.shape[0]))
            == weights.raw(embedding, start, min(start + step, head.shape[0]))
            for start in range(0, head.shape[0], step)
        )
    finally:
        weights.close()


def _other_values(
    weights: GgufWeights, name: str, stored: StoredRows | None, expected: tuple[float, ...] | None
) -> list[str]:
    """What is wrong with RoPE factors; `expected` None: they must all be 1, which is none."""
    import torch

    if stored is None:
        return [f"{name}: missing"]
    wanted = torch.ones(stored.shape) if expected is None else torch.tensor(expected)
    if stored.kind != "F32" or stored.shape != tuple(wanted.shape):
        return [f"{name}: {stored.kind} {list(stored.shape)}, expected F32 {list(wanted.shape)}"]
    rows = weights._rows(stored, 0, stored.shape[0])
    return [] if torch.allclose(rows, wanted, rtol=_CLOSE, atol=0.0) else [f"{name}: other values than expected"]
