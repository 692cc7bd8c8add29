"""Writes an F32, BF16 or F16 GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact_prompt import GGUF_PROMPT_KEY
from contract.errors import AssayError
from export.gguf_families import read_model
from export.gguf_family import GgufModel, GgufTensor, Value, plan_tensors
from export.gguf_tokenizer import SpecialIds, TokenTables, add_tokenizer, load_tokenizer, special_ids, token_tables
from export.source import Source

if TYPE_CHECKING:
    import gguf
    import numpy as np

FloatType = Literal["f32", "bf16", "f16"]
_DTYPES: dict[FloatType, str] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# llama.cpp reads learned positions in float32 only, and never quantizes them.
POSITIONS = "position_embd.weight"


@dataclass(frozen=True)
class GgufPlan:
    """All that is known of a GGUF before a value is read."""

    model: GgufModel
    tensors: Sequence[GgufTensor]
    rows: int
    tokenizer: Any
    tables: TokenTables
    special: SpecialIds


def plan_gguf(source: Source, pre_tokenizer: str | None = None) -> GgufPlan:
    """Check configuration, tokenizer and tensor list against each other.

    Args:
        source: the model.
        pre_tokenizer: llama.cpp's name for it, where it is not to be recognised.

    Raises:
        AssayError: whatever does not fit, all tensors named at once.
    """
    model = read_model(source)
    tensors = plan_tensors(model, source.weights, source.where)
    rows = model.shapes[model.embedding][0]
    tokenizer = load_tokenizer(source.folder)
    return GgufPlan(
        model,
        tensors,
        rows,
        tokenizer,
        token_tables(source.folder, tokenizer, rows, pre_tokenizer),
        special_ids(source.folder, tokenizer),
    )


def stored_type(tensor: GgufTensor, float_type: FloatType) -> str:
    """Vectors (norms, biases, RoPE factors) and learned positions stay float32, as llama.cpp wants them."""
    small = len(tensor.shape) == 1 or tensor.name == POSITIONS
    return "float32" if small else _DTYPES[float_type]


def tensor_values(tensor: GgufTensor, source: Source, dtype: str) -> np.ndarray:
    """The values to write, in llama.cpp's layout and the dtype asked for (bfloat16 as the uint16 of its bits).

    Raises:
        AssayError: a value is not finite, or becomes infinite in float16.
    """
    import torch

    values = tensor.load(source.weights)
    rounded = values.to(getattr(torch, dtype)).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        where = f"{source.where}: {tensor.source or tensor.name}"
        if not bool(torch.isfinite(values).all()):
            raise AssayError("a weight is not finite", where=where)
        raise AssayError(
            f"a weight is too large for {dtype}",
            where=where,
            expected=f"at most {torch.finfo(getattr(torch, dtype)).max:g}",
            got=f"{values.abs().max().item():g}",
            hint="export f32, bf16 or q8_0",
        )
    found: np.ndarray = rounded.view(torch.uint16).numpy() if dtype == "bfloat16" else rounded.numpy()
    return found


def write_gguf(
    path: Path, plan: GgufPlan, source: Source, float_type: FloatType, *, name: str, license_name: str | None = None
) -> None:
    """Write the file. The same source gives the same bytes."""
    import gguf
    import numpy as np

    writer = _with_metadata(plan, source, float_type, name, license_name)
    for tensor in plan.tensors:
        dtype = stored_type(tensor, float_type)
        stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        raw = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" else None
        writer.add_tensor_info(tensor.name, tensor.shape, stored, int(np.prod(tensor.shape)) * stored.itemsize, raw)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            writer.write_tensor_data(tensor_values(tensor, source, stored_type(tensor, float_type)))
    finally:
        writer.close()


def write_vocabulary(path: Path, plan: GgufPlan, source: Source) -> None:
    """Write a file without tensors: all that llama.cpp needs to tokenize."""
    writer = _with_metadata(plan, source, "f32", "vocabulary", None)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _with_metadata(
    plan: GgufPlan, source: Source, float_type: FloatType, name: str, license_name: str | None
) -> gguf.GGUFWriter:
    import gguf

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, plan.model.arch)
    writer.add_type("model")
    writer.add_name(name)
    if license_name:
        writer.add_license(license_name)
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32,
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
        }[float_type]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in plan.model.metadata.items():
        _add(writer, key, value)
    add_tokenizer(writer, plan.tables, plan.special)
    if "prompt" in source.details:
        writer.add_string(GGUF_PROMPT_KEY, json.dumps(source.details["prompt"], sort_keys=True))
    return writer


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    import gguf

    kinds = gguf.GGUFValueType
    match value:
        case bool():
            writer.add_key_value(key, value, kinds.BOOL)
        case int():
            writer.add_key_value(key, value, kinds.UINT32)
        case float():
            writer.add_key_value(key, value, kinds.FLOAT32)
        case str():
            writer.add_key_value(key, value, kinds.STRING)
        case list():
            writer.add_key_value(key, value, kinds.ARRAY, kinds.BOOL)
