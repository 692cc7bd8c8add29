"""Writes an F32 or F16 GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact_prompt import GGUF_PROMPT_KEY
from contract.errors import AssayError
from export.gguf_llama import GgufTensor, LlamaShape, add_hyper_parameters, plan_tensors
from export.gguf_tokenizer import SpecialIds, TokenTables, add_tokenizer, load_tokenizer, special_ids, token_tables
from export.source import Source

if TYPE_CHECKING:
    import numpy as np

FloatType = Literal["f32", "f16"]


@dataclass(frozen=True)
class GgufPlan:
    """All that is known of a GGUF before a value is read."""

    shape: LlamaShape
    tensors: Sequence[GgufTensor]
    rows: int
    tokenizer: Any
    tables: TokenTables
    special: SpecialIds


def plan_gguf(source: Source) -> GgufPlan:
    """Check configuration, tokenizer and tensor list against each other.

    Raises:
        AssayError: whatever does not fit, all tensors named at once.
    """
    shape = LlamaShape.from_config(source.config, source.where)
    embedding = "model.embed_tokens.weight"
    rows = source.weights.shape(embedding)[0] if embedding in source.weights.names() else source.config["vocab_size"]
    tensors = plan_tensors(shape, source.weights, rows, source.where)
    tokenizer = load_tokenizer(source.folder)
    return GgufPlan(
        shape,
        tensors,
        rows,
        tokenizer,
        token_tables(source.folder, tokenizer, rows),
        special_ids(source.folder, tokenizer),
    )


def stored_type(tensor: GgufTensor, float_type: FloatType) -> str:
    """Vectors (norms, biases, RoPE factors) stay float32, as llama.cpp wants them."""
    return "float32" if float_type == "f32" or len(tensor.shape) == 1 else "float16"


def tensor_values(tensor: GgufTensor, plan: GgufPlan, source: Source, dtype: str) -> np.ndarray:
    """The values to write, in llama.cpp's layout and the dtype asked for.

    Raises:
        AssayError: a value is not finite, or becomes infinite in float16.
    """
    import numpy as np
    import torch

    values = tensor.load(source.weights, plan.shape)
    rounded: np.ndarray = values.to(getattr(torch, dtype)).contiguous().numpy()
    if not np.isfinite(rounded).all():
        where = f"{source.where}: {tensor.source or tensor.name}"
        if not bool(torch.isfinite(values).all()):
            raise AssayError("a weight is not finite", where=where)
        raise AssayError(
            "a weight is too large for float16",
            where=where,
            expected="at most 65504",
            got=f"{values.abs().max().item():g}",
            hint="export f32 or q8_0",
        )
    return rounded


def write_gguf(
    path: Path, plan: GgufPlan, source: Source, float_type: FloatType, *, name: str, license_name: str | None = None
) -> None:
    """Write the file. The same source gives the same bytes."""
    import gguf
    import numpy as np

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type("model")
    writer.add_name(name)
    if license_name:
        writer.add_license(license_name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if float_type == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyper_parameters(writer, plan.shape, plan.rows)
    add_tokenizer(writer, plan.tables, plan.special)
    if "prompt" in source.details:
        writer.add_string(GGUF_PROMPT_KEY, json.dumps(source.details["prompt"], sort_keys=True))
    for tensor in plan.tensors:
        dtype = np.dtype(stored_type(tensor, float_type))
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, int(np.prod(tensor.shape)) * dtype.itemsize)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            writer.write_tensor_data(tensor_values(tensor, plan, source, stored_type(tensor, float_type)))
    finally:
        writer.close()
