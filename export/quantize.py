"""The ladder of quantizations: which tensor types a mixture takes, and which and how many bits really came out."""

from __future__ import annotations

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from contract.errors import AssayError

if TYPE_CHECKING:
    pass


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
_UNQUANTIZED = ("position_embd.weight", "attn_rel_b.weight")  # how their names end
# "[   1/  38]  output.weight - [ 256, 2048, 1, 1], type = f16, size = 1.00 MiB -> 0.41 MiB (q6_K)"; without an arrow
# the tensor stays what it is
_DRY_RUN = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) +- \[([\d, ]+)\], type = +(\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?",
    re.MULTILINE,
)


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


def planned_types(outline: Path, quant: str, *, with_matrix: bool) -> dict[str, str]:
    """The type ("Q4_K") that llama.cpp would store each tensor as: its quantizer's dry run.

    Args:
        outline: a GGUF file with every tensor's name, float type and shape; its values are not read.
        quant: of the ladder.
        with_matrix: some mixtures are others where there is an importance matrix, whatever it says.

    Raises:
        AssayError: llama.cpp refused, or did not speak of every tensor.
    """
    import llama_cpp
    import llama_cpp.llama_cpp as api

    from export.gguf_read import read_gguf

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = LADDER[quant].file_type, True, 1
    if with_matrix:
        value = (ctypes.c_float * 1)(1.0)
        entries = (api.llama_model_imatrix_data * 2)()
        entries[0].name, entries[0].size = b"any", 1
        entries[0].data = ctypes.cast(value, ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    with quiet_llama() as log:
        code = llama_cpp.llama_model_quantize(str(outline).encode(), b"", ctypes.byref(params))
    text = "".join(log)
    if code != 0:
        raise AssayError(f"llama.cpp could not plan {quant}", got=text[-400:].strip() or f"code {code}")
    found = {name: (new or old).upper() for name, _, old, new in _DRY_RUN.findall(text)}
    stored = {str(tensor.name) for tensor in read_gguf(outline).tensors}
    if found.keys() != stored:
        raise AssayError(
            "llama.cpp's dry run does not say what it would do with every tensor",
            got=f"{len(found)} of {len(stored)} tensors",
            hint="this version of llama-cpp-python is not one that Assay knows",
        )
    return found


def types_found(path: Path, quant: str) -> TypesFound:
    """Read back which types a GGUF file holds."""
    from export.gguf_read import read_gguf

    tensors = read_gguf(path).tensors
    return types_of(quant, [(t.name, t.tensor_type.name, [int(extent) for extent in t.shape]) for t in tensors])


def types_of(quant: str, tensors: Sequence[tuple[str, str, Sequence[int]]]) -> TypesFound:
    """What a file of these tensors holds.

    Args:
        quant: of the ladder.
        tensors: name, type ("Q4_K") and extents, columns first, of each.
    """
    types = Counter(kind for _, kind, _ in tensors)
    size_bits = 8 * sum(tensor_bytes(kind, extents) for _, kind, extents in tensors)
    count = sum(math.prod(extents) for *_, extents in tensors)
    heads = {name for name, *_ in tensors} & set(_HEADS)
    if len(heads) == 2:
        heads.discard("token_embd.weight")  # it is not tied, and an ordinary tensor
    fallbacks = []
    for name, kind, extents in tensors:
        block = LADDER[quant].head_block if name in heads else LADDER[quant].block
        if len(extents) > 1 and extents[0] % block and not name.endswith(_UNQUANTIZED):
            fallbacks.append(f"{name}: {kind}, {extents[0]} columns")
    return TypesFound(dict(sorted(types.items())), round(size_bits / count, 4), fallbacks)


def tensor_bytes(kind: str, extents: Sequence[int]) -> int:
    """Bytes of a tensor of the type ("Q4_K") and extents given."""
    import gguf

    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return math.prod(extents) // block * block_bytes
