"""Quantizes a GGUF in-process with llama.cpp, and says which tensor types and how many bits really came out."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.errors import AssayError
from export.imatrix_file import ImportanceMatrix, read_imatrix

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class QuantType:
    """A rung of the ladder: a mixture of tensor types under one name."""

    file_type: int  # LLAMA_FTYPE in llama.h
    block: int  # columns that are quantized together; 1: not quantized
    head_block: int  # the same for the output (or tied) embeddings, which get a finer type
    bits: float  # per weight, of the type most tensors have
    needs_matrix: bool = False  # llama.cpp does not pick its values without knowing which weights matter


LADDER: dict[str, QuantType] = {
    "f32": QuantType(0, 1, 1, 32),
    "bf16": QuantType(32, 1, 1, 16),
    "f16": QuantType(1, 1, 1, 16),
    "q8_0": QuantType(7, 32, 32, 8.5),
    "q6_k": QuantType(18, 256, 256, 6.5625),
    "q5_k_m": QuantType(17, 256, 256, 5.5),
    "q5_k_s": QuantType(16, 256, 256, 5.5),
    "q5_0": QuantType(8, 32, 256, 5.5),
    "q4_k_m": QuantType(15, 256, 256, 4.5),
    "q4_k_s": QuantType(14, 256, 256, 4.5),
    "q4_0": QuantType(2, 32, 256, 4.5),
    "iq4_nl": QuantType(25, 32, 256, 4.5),
    "iq4_xs": QuantType(30, 256, 256, 4.25),
    "q3_k_l": QuantType(13, 256, 256, 3.4375),
    "q3_k_m": QuantType(12, 256, 256, 3.4375),
    "q3_k_s": QuantType(11, 256, 256, 3.4375),
    "iq3_xxs": QuantType(23, 256, 256, 3.0625, needs_matrix=True),
    "q2_k": QuantType(10, 256, 256, 2.625),
    "iq2_m": QuantType(29, 256, 256, 2.5625, needs_matrix=True),
    "q2_k_s": QuantType(21, 256, 256, 2.625, needs_matrix=True),
    "iq2_s": QuantType(28, 256, 256, 2.3125, needs_matrix=True),
    "iq2_xs": QuantType(20, 256, 256, 2.3125, needs_matrix=True),
    "iq2_xxs": QuantType(19, 256, 256, 2.0625, needs_matrix=True),
    "iq1_m": QuantType(31, 256, 256, 1.75, needs_matrix=True),
    "iq1_s": QuantType(24, 256, 256, 1.5625, needs_matrix=True),
}
FLOATS: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32", "bf16", "f16")
NEED_MATRIX = tuple(name for name, kind in LADDER.items() if kind.needs_matrix)
IMATRIX_FILE = "imatrix.gguf"
_HEADS = ("output.weight", "token_embd.weight")
_UNQUANTIZED = ("position_embd.weight",)


@dataclass(frozen=True)
class TypesFound:
    """What a GGUF file really holds."""

    tensor_types: dict[str, int]  # "Q4_K" -> number of tensors
    bits_per_weight: float  # over all tensors, embeddings included
    fallbacks: list[str]  # "blk.0.ffn_down.weight: Q5_0, 64 columns" for each tensor the mixture could not take

    def fallback_sentence(self, quant: str) -> str:
        """The fallbacks in one sentence."""
        types = Counter(line.split(": ")[1].split(",")[0] for line in self.fallbacks)
        columns = sorted({int(line.rsplit(" ", 2)[1]) for line in self.fallbacks})
        block = LADDER[quant].head_block
        block = 32 if any(column % 32 for column in columns) and LADDER[quant].block == 32 else block
        return (
            f"{quant.upper()}: {len(self.fallbacks)} tensors fell back to {', '.join(sorted(types))} because "
            f"{', '.join(map(str, columns))} is not a multiple of {block}"
        )


@contextmanager
def quiet_llama() -> Iterator[list[str]]:
    """Collects llama.cpp's log instead of printing it; llama-cpp-python's own logger is put back afterwards."""
    import llama_cpp
    from llama_cpp._logger import llama_log_callback

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def uses_matrix(quant: str) -> bool:
    """Do this type's values depend on an importance matrix? Those of floats and of Q8_0 never do."""
    return quant not in (*FLOATS, "q8_0")


def quantize(source: Path, target: Path, quant: str, threads: int, imatrix: Path | None = None) -> None:
    """Quantize an F32, BF16 or F16 GGUF file.

    Args:
        source: the file to read.
        target: the file to write.
        quant: of the ladder.
        threads: CPU threads.
        imatrix: an importance matrix's file: errors are weighed with its mean squares, as `llama-quantize --imatrix`.

    Raises:
        AssayError: the file is no importance matrix, or llama.cpp refused; the last lines of its log are given.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LADDER[quant].file_type
    params.nthread = threads
    matrix = None if imatrix is None else read_imatrix(imatrix)
    means = {} if matrix is None else matrix.means()  # llama.cpp reads them where they lie
    if matrix is not None:
        params.imatrix = _entries(means)
        params.kv_overrides = _matrix_keys(matrix)
    with quiet_llama() as log:
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code != 0:
        raise AssayError(
            f"llama.cpp could not quantize to {quant}",
            where=str(source),
            got="".join(log[-4:]).strip() or f"code {code}",
        )


def _entries(means: Mapping[str, np.ndarray]) -> Any:
    """The means as llama.cpp takes them: an array of names and pointers that ends with an empty entry."""
    import llama_cpp.llama_cpp as api

    entries = (api.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def _matrix_keys(matrix: ImportanceMatrix) -> Any:
    """What llama-quantize notes of a matrix in the file's metadata."""
    import llama_cpp.llama_cpp as api

    values: dict[str, str | int] = {
        "quantize.imatrix.file": IMATRIX_FILE,
        "quantize.imatrix.dataset": matrix.data,
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": matrix.chunks,
    }
    overrides = (api.llama_model_kv_override * (len(values) + 1))()
    for override, (key, value) in zip(overrides, values.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, int):
            override.tag, override.value.val_i64 = api.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            override.tag, override.value.val_str = api.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
    return overrides


def types_found(path: Path, quant: str) -> TypesFound:
    """Read back which types a GGUF file holds."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    size_bits = 8 * sum(int(tensor.n_bytes) for tensor in reader.tensors)
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    heads = {tensor.name for tensor in reader.tensors} & set(_HEADS)
    if len(heads) == 2:
        heads.discard("token_embd.weight")  # it is not tied, and an ordinary tensor
    fallbacks = []
    for tensor in reader.tensors:
        block = LADDER[quant].head_block if tensor.name in heads else LADDER[quant].block
        columns = int(tensor.shape[0])
        if len(tensor.shape) > 1 and columns % block and tensor.name not in _UNQUANTIZED:
            fallbacks.append(f"{tensor.name}: {tensor.tensor_type.name}, {columns} columns")
    return TypesFound(dict(sorted(types.items())), round(size_bits / count, 4), fallbacks)
