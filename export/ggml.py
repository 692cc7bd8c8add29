"""ggml's own quantizers and dequantizers, from the library that llama-cpp-python ships, called on some rows."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError
from export.finite import all_finite

if TYPE_CHECKING:
    import numpy as np
    import torch


class TypeCannotHold(AssayError):  # noqa: N818
    """A weight, or the scale of its block, overflows the type."""


def quantize_rows(kind: str, rows: torch.Tensor, means: np.ndarray | None, where: str) -> np.ndarray:
    """Rows as llama_model_quantize stores them; it calls the same function on as many rows as it likes.

    Args:
        kind: the tensor type, as the gguf package names it: "Q4_K".
        rows: [rows, columns] in float32; columns are a multiple of the type's block.
        means: [columns] in float32, the importance matrix's mean squares; None: every weight matters alike.
        where: the tensor, for messages.

    Returns:
        The bytes, [rows, bytes per row].

    Raises:
        TypeCannotHold: the scale of a block becomes infinite in float16.
        AssayError: the type needs a matrix and there is none, or ggml calls what it made invalid.
    """
    import gguf
    import numpy as np
    import torch

    number, library = int(gguf.GGMLQuantizationType[kind]), _library()
    if means is None and library.ggml_quantize_requires_imatrix(number):
        raise AssayError(
            f"{kind} needs an importance matrix, and there is none for this tensor",
            where=where,
            hint="it may be of another model, or its text never came here",
        )
    rows = rows.contiguous()
    count, columns = rows.shape
    data = np.empty((count, library.ggml_row_size(number, columns)), np.uint8)
    weights = None if means is None else means.ctypes.data
    library.ggml_quantize_chunk(number, rows.data_ptr(), data.ctypes.data, 0, count, columns, weights)
    largest = rows.abs().max().item()
    risky = largest > torch.finfo(torch.float16).max  # looked at before ggml, which would print a line of its own
    if risky and not all_finite(dequantize_rows(kind, bytearray(data.tobytes()), columns)):
        raise TypeCannotHold(
            f"a weight is too large for {kind}", where=where, got=f"{largest:g}", hint="export f32 or bf16"
        )
    if not library.ggml_validate_row_data(number, data.ctypes.data, data.nbytes):
        raise AssayError(f"what llama.cpp quantized to {kind} is not valid", where=where)
    return data


def dequantize_rows(kind: str, data: bytearray, columns: int) -> torch.Tensor:
    """[rows, columns] in float32 of the bytes of some rows."""
    import gguf
    import torch

    library, number = _library(), int(gguf.GGMLQuantizationType[kind])
    values = torch.empty(len(data) // library.ggml_row_size(number, columns), columns)
    dequantize = library[f"dequantize_row_{library.ggml_type_name(number).decode()}"]
    dequantize.argtypes, dequantize.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    source = (ctypes.c_char * len(data)).from_buffer(data)
    dequantize(ctypes.addressof(source), values.data_ptr(), values.numel())
    return values


@cache
def _library() -> Any:
    from llama_cpp._ggml import libggml

    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    libggml.ggml_row_size.argtypes, libggml.ggml_row_size.restype = [number, ctypes.c_int64], size
    libggml.ggml_type_name.argtypes, libggml.ggml_type_name.restype = [number], ctypes.c_char_p
    libggml.ggml_quantize_requires_imatrix.argtypes = [number]
    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    libggml.ggml_validate_row_data.argtypes = [number, pointer, size]
    libggml.ggml_validate_row_data.restype = ctypes.c_bool
    whole = ctypes.c_int64
    libggml.ggml_quantize_chunk.argtypes = [number, pointer, pointer, whole, whole, whole, pointer]
    libggml.ggml_quantize_chunk.restype = size
    return libggml
