"""Quantizes a GGUF in-process with llama.cpp, and says which tensor types and how many bits really came out."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contract.errors import AssayError


@dataclass(frozen=True)
class QuantType:
    """A rung of the ladder: a mixture of tensor types under one name."""

    file_type: int  # LLAMA_FTYPE in llama.h
    block: int  # columns that are quantized together; 1: not quantized
    head_block: int  # the same for the output (or tied) embeddings, which get a finer type
    bits: float  # per weight, of the type most tensors have


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
    "q2_k": QuantType(10, 256, 256, 2.625),
}
FLOATS: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32", "bf16", "f16")
# llama.cpp refuses to choose these types' values without knowing which weights matter.
NEED_MATRIX = ("iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s")
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


def quantize(source: Path, target: Path, quant: str, threads: int) -> None:
    """Quantize an F32, BF16 or F16 GGUF file.

    Raises:
        AssayError: llama.cpp refused; the last lines of its log are given.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LADDER[quant].file_type
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
