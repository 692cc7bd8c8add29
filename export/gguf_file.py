"""What a GGUF file consists of, and its header: metadata, tokenizer, and where each tensor lies."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact_prompt import GGUF_PROMPT_KEY
from export.gguf_families import read_model
from export.gguf_family import GgufModel, GgufTensor, Value, plan_tensors
from export.gguf_tokenizer import SpecialIds, TokenTables, add_tokenizer, load_tokenizer, special_ids, token_tables
from export.quantize import LADDER, tensor_bytes
from export.source import Source

if TYPE_CHECKING:
    import gguf

FloatType = Literal["f32", "bf16", "f16"]
# llama.cpp reads learned positions in float32 only, and never quantizes them.
POSITIONS = "position_embd.weight"
RELATIVE_POSITIONS = "attn_rel_b.weight"


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
    """Vectors (norms, biases, RoPE factors), learned and relative positions stay F32, as llama.cpp wants them."""
    small = len(tensor.shape) == 1 or tensor.name == POSITIONS or tensor.name.endswith(RELATIVE_POSITIONS)
    return "F32" if small else float_type.upper()


def exact_type(source: Source) -> FloatType:
    """The float type that holds every weight as it is."""
    stored = {source.weights.dtype(name) for name in source.weights.names()}
    return "f16" if stored == {"F16"} else "bf16" if stored == {"BF16"} else "f32"


@dataclass(frozen=True)
class GgufFile:
    """A file to be written: which type each tensor has, and what its metadata says besides the model's own."""

    path: Path
    tensor_types: Mapping[str, str]  # tensor -> "F16", "Q4_K" …
    file_type: int  # LLAMA_FTYPE in llama.h
    notes: Mapping[str, str | int] = field(default_factory=dict)  # key -> value


def write_header(
    file: GgufFile, plan: GgufPlan, source: Source, *, name: str, license_name: str | None = None
) -> dict[str, int]:
    """Write all but the values: there the file has a hole. The same source gives the same bytes.

    Returns:
        Where each tensor's values begin, in bytes from the beginning of the file.
    """
    import gguf
    import numpy as np

    writer = _with_metadata(plan, source, file.file_type, name, license_name)
    for key, value in file.notes.items():
        _add(writer, key, value)
    sizes = {}
    for tensor in plan.tensors:
        kind = gguf.GGMLQuantizationType[file.tensor_types[tensor.name]]
        sizes[tensor.name] = tensor_bytes(kind.name, tensor.shape[::-1])
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), sizes[tensor.name], kind)
    _write_metadata(writer, file.path)
    offsets, end = {}, padded(file.path.stat().st_size)
    for tensor_name, size_bytes in sizes.items():
        offsets[tensor_name] = end
        end += padded(size_bytes)
    os.truncate(file.path, end)
    return offsets


def float_file(path: Path, plan: GgufPlan, float_type: FloatType) -> GgufFile:
    """A file of one float type."""
    types = {tensor.name: stored_type(tensor, float_type) for tensor in plan.tensors}
    return GgufFile(path, types, LADDER[float_type].file_type)


def padded(size_bytes: int) -> int:
    """Up to the next multiple of GGUF's alignment, which every tensor's data begins on."""
    import gguf

    return -(-size_bytes // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT


def write_vocabulary(path: Path, plan: GgufPlan, source: Source, *, name: str = "vocabulary") -> None:
    """Write a file without tensors: all that llama.cpp needs to tokenize. It reads "phi-3" in a model's name too."""
    _write_metadata(_with_metadata(plan, source, LADDER["f32"].file_type, name, None), path)


def _write_metadata(writer: gguf.GGUFWriter, path: Path) -> None:
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _with_metadata(
    plan: GgufPlan, source: Source, file_type: int, name: str, license_name: str | None
) -> gguf.GGUFWriter:
    import gguf

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, plan.model.arch)
    writer.add_type("model")
    writer.add_name(name)
    if license_name:
        writer.add_license(license_name)
    writer.add_file_type(file_type)
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
