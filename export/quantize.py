"""Quantizes a GGUF in-process with llama.cpp, and says which tensor types and how many bits really came out."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract.errors import AssayError

# quantization -> (llama.cpp's file type, columns per block the mixture wants)
FILE_TYPES = {"q8_0": (7, 32), "q4_k_m": (15, 256)}


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
        return (
            f"{quant.upper()}: {len(self.fallbacks)} tensors fell back to {', '.join(sorted(types))} because "
            f"{', '.join(map(str, columns))} is not a multiple of {FILE_TYPES[quant][1]}"
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


def quantize(source: Path, target: Path, quant: str, threads: int) -> None:
    """Quantize an F32 or F16 GGUF file.

    Raises:
        AssayError: llama.cpp refused; the last lines of its log are given.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quant][0]
    params.nthread = threads
    with quiet_llama() as log:
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code != 0:
        raise AssayError(
            f"llama.cpp could not quantize to {quant}",
            where=str(source),
            got="".join(log[-4:]).strip() or f"code {code}",
        )


def types_found(path: Path, quant: str) -> TypesFound:
    """Read back which types a GGUF file holds."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    size_bits = 8 * sum(int(tensor.n_bytes) for tensor in reader.tensors)
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    fallbacks = []
    if quant in FILE_TYPES:
        block = FILE_TYPES[quant][1]
        fallbacks = [
            f"{tensor.name}: {tensor.tensor_type.name}, {tensor.shape[0]} columns"
            for tensor in reader.tensors
            if len(tensor.shape) > 1 and int(tensor.shape[0]) % block
        ]
    return TypesFound(dict(sorted(types.items())), round(size_bits / count, 4), fallbacks)
