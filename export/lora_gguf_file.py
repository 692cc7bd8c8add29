"""Writes a LoRA adapter as a GGUF file, one pair of matrices in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from contract.errors import AssayError
from export.adapted import AdaptedWeights
from export.lora_gguf_plan import LoraPair, LoraPlan

if TYPE_CHECKING:
    import numpy as np

LoraType = Literal["f32", "f16"]


def pair_values(
    pair: LoraPair, weights: AdaptedWeights, lora_type: LoraType, where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """A and B as they are stored, each with its name in the file.

    Raises:
        AssayError: a value is not finite, or too large for float16.
    """
    import torch

    for suffix, matrix in zip("ab", pair.matrices(weights), strict=True):
        stored = matrix.half() if lora_type == "f16" else matrix
        place = f"{where}: {pair.change.a if suffix == 'a' else pair.change.b}"
        if not bool(torch.isfinite(matrix).all()):
            raise AssayError("a value of the adapter, with its scale, is not finite", where=place)
        if not bool(torch.isfinite(stored).all()):
            raise AssayError(
                "a value of the adapter is too large for float16",
                where=place,
                expected="at most 65504",
                got=f"{matrix.abs().max().item():g}",
                hint="--dtype f32",
            )
        yield f"{pair.tensor.name}.lora_{suffix}", stored.numpy()


def write_lora(
    path: Path,
    plan: LoraPlan,
    weights: AdaptedWeights,
    lora_type: LoraType,
    *,
    where: str,
    name: str,
    license_name: str | None,
) -> None:
    """Write the file. The same adapter gives the same bytes.

    Raises:
        AssayError: a value is not finite, or too large for float16.
    """
    import gguf
    import numpy as np

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, plan.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    if license_name:
        writer.add_license(license_name)
    types = gguf.LlamaFileType
    writer.add_file_type(types.ALL_F32 if lora_type == "f32" else types.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, plan.alpha)
    dtype = np.dtype("float32" if lora_type == "f32" else "float16")
    for pair in plan.pairs:
        for suffix, shape in zip("ab", pair.shapes, strict=True):
            size_bytes = int(np.prod(shape)) * dtype.itemsize
            writer.add_tensor_info(f"{pair.tensor.name}.lora_{suffix}", shape, dtype, size_bytes)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for pair in plan.pairs:
            for _, values in pair_values(pair, weights, lora_type, where):
                writer.write_tensor_data(values)
    finally:
        writer.close()
