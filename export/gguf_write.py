"""Writes GGUF files of several types in one pass over the weights, some rows of a few tensors in memory at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from contract.errors import AssayError
from export.finite import all_finite
from export.ggml import TypeCannotHold, quantize_rows
from export.gguf_family import GgufTensor
from export.gguf_file import GgufFile, GgufPlan, exact_type, float_file, write_header
from export.imatrix_file import ImportanceMatrix, read_imatrix
from export.parallel import in_parallel
from export.quantize import FLOATS, IMATRIX_FILE, LADDER, planned_types, tensor_bytes, uses_matrix
from export.shards import refuse_without_room
from export.source import Source
from export.tensors.at_offset import begin_flush, write_at

if TYPE_CHECKING:
    import numpy as np
    import torch

FLOAT_KINDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # GGUF's names and torch's


@dataclass(frozen=True)
class _Target:
    """A file that is being written."""

    descriptor: int
    file: GgufFile
    offsets: Mapping[str, int]  # of each tensor's values
    means: Mapping[str, np.ndarray] = field(default_factory=dict)  # mean squares that errors are weighed with


def write_ggufs(
    paths: Mapping[str, Path],
    plan: GgufPlan,
    source: Source,
    *,
    name: str,
    license_name: str | None = None,
    threads: int = 1,
    imatrix: Path | None = None,
    planned: Mapping[str, GgufFile] | None = None,
) -> None:
    """Write a file for each type of the ladder. The same source gives the same bytes, whatever the threads.

    Quantized values are those that `llama-quantize` makes of a float file that holds every weight as it is; no such
    file is written.

    Args:
        paths: type -> the file.
        plan: of the model.
        source: the model.
        name: of the model, for the metadata.
        license_name: of the model.
        threads: each works on a tensor of its own.
        imatrix: an importance matrix's file, as `llama-quantize --imatrix` takes it.
        planned: what `plan_file` said of these paths, where it has been asked already.

    Raises:
        TypeCannotHold: a value, or the scale of a block, becomes infinite in float16.
        AssayError: a value is not finite, there is no room, or the matrix is not of this model.
    """
    matrix = None if imatrix is None else read_imatrix(imatrix)
    targets, needed = [], 0
    with ExitStack() as stack:
        for quant, path in paths.items():
            used = matrix if uses_matrix(quant) else None
            known = (planned or {}).get(quant)
            file = known or plan_file(path, quant, plan, source, with_matrix=used is not None)
            file = file if used is None else replace(file, notes=matrix_notes(used))
            offsets = write_header(file, plan, source, name=name, license_name=license_name)
            needed += path.stat().st_size
            means = {} if used is None else used.means()
            targets.append(_Target(stack.enter_context(_opened(path)), file, offsets, means))
        refuse_without_room(next(iter(paths.values())).parent, needed)
        largest_first = sorted(plan.tensors, key=lambda tensor: -math.prod(tensor.shape))
        in_parallel(lambda tensor: _write_tensor(tensor, source, targets), largest_first, threads)


def rounded_rows(rows: torch.Tensor, kind: str, where: str) -> torch.Tensor:
    """Rows as they are stored in a type of FLOAT_KINDS.

    Raises:
        TypeCannotHold: a value becomes infinite in the type.
        AssayError: a value is not finite.
    """
    import torch

    dtype = getattr(torch, FLOAT_KINDS[kind])
    rounded = rows.to(dtype).contiguous()
    if all_finite(rounded):
        return rounded
    if not bool(torch.isfinite(rows).all()):
        raise AssayError("a weight is not finite", where=where)
    raise TypeCannotHold(
        f"a weight is too large for {FLOAT_KINDS[kind]}",
        where=where,
        expected=f"at most {torch.finfo(dtype).max:g}",
        got=f"{rows.abs().max().item():g}",
        hint="export f32 or bf16" if kind == "F16" else "export f32",
    )


def plan_file(path: Path, quant: str, plan: GgufPlan, source: Source, *, with_matrix: bool) -> GgufFile:
    """Which type each tensor gets; llama.cpp is asked with an outline of the file, written beside it for a moment."""
    for float_type in FLOATS:
        if quant == float_type:
            return float_file(path, plan, float_type)
    with TemporaryDirectory(dir=path.parent, prefix=".outline-") as folder:
        outline = float_file(Path(folder) / "outline.gguf", plan, exact_type(source))
        write_header(outline, plan, source, name="outline")
        types = planned_types(outline.path, quant, with_matrix=with_matrix)
    return GgufFile(path, types, LADDER[quant].file_type)


def matrix_notes(matrix: ImportanceMatrix) -> dict[str, str | int]:
    """What llama-quantize notes of a matrix in the file's metadata."""
    return {
        "quantize.imatrix.file": IMATRIX_FILE,
        "quantize.imatrix.dataset": matrix.data[:127],
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": matrix.chunks,
    }


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_tensor(tensor: GgufTensor, source: Source, targets: list[_Target]) -> None:
    where = f"{source.where}: {tensor.source or tensor.name}"
    written = [0 for _ in targets]
    for _, rows in tensor.blocks(source.weights):
        for index, target in enumerate(targets):
            data = _stored(rows, tensor, target, where)
            write_at(target.descriptor, data.reshape(-1).data, target.offsets[tensor.name] + written[index])
            written[index] += data.nbytes
    for index, target in enumerate(targets):
        kind = target.file.tensor_types[tensor.name]
        assert written[index] == tensor_bytes(kind, tensor.shape[::-1]), tensor.name
        begin_flush(target.descriptor, target.offsets[tensor.name], written[index])


def _stored(rows: torch.Tensor, tensor: GgufTensor, target: _Target, where: str) -> np.ndarray:
    """The bytes of some rows, as uint8."""
    import torch

    kind = target.file.tensor_types[tensor.name]
    if kind in FLOAT_KINDS:
        found: np.ndarray = rounded_rows(rows, kind, where).view(torch.uint8).numpy()
        return found
    means = target.means.get(tensor.name)
    columns = tensor.shape[-1]
    if target.means and tensor.name.startswith("blk.") and (means is None or means.size != columns):
        raise AssayError(
            "the importance matrix is not of this model",
            where=where,
            expected=f"{columns} columns",
            got="none" if means is None else f"{means.size}",
        )
    return quantize_rows(kind, rounded_rows(rows, "F32", where), means, where)
