"""What an artifact is called in an evaluation, how its weights are stored, and which prompt it was made for."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from pathlib import Path

from contract.artifact import ONNX_LABEL, Artifact
from contract.artifact_prompt import gguf_integer
from contract.errors import AssayError, NoEngineError
from contract.model_folder import read_json, resolve_model
from runtimes.onnx_file import precision_of

_STORED_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8}
_MOST_ADDED_TOKENS = 200
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# general.file_type of a .gguf (LLAMA_FTYPE in llama.h)
_FILE_TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_k",
    11: "q3_k_s",
    12: "q3_k_m",
    13: "q3_k_l",
    14: "q4_k_s",
    15: "q4_k_m",
    16: "q5_k_s",
    17: "q5_k_m",
    18: "q6_k",
    25: "iq4_nl",
    30: "iq4_xs",
    32: "bf16",
    19: "iq2_xxs",
    20: "iq2_xs",
    21: "q2_k_s",
    23: "iq3_xxs",
    24: "iq1_s",
    28: "iq2_s",
    29: "iq2_m",
    31: "iq1_m",
}


_FALLBACK = re.compile(r"\S+: (?P<type>\w+), (?P<columns>\d+) columns")  # as export writes it


def label_of(artifact: Artifact, quant: str | None) -> str:
    """ "adapter", "merged", a quantization, "onnx-int8", or what else its name makes of it; usable as a file name."""
    if artifact.kind in ("adapter", "merged"):
        return artifact.kind
    if artifact.kind == "onnx" and quant:
        return ONNX_LABEL + quant
    return quant or re.sub(r"[^A-Za-z0-9._-]+", "-", artifact.name).strip(".-") or artifact.kind


def stored_otherwise(artifact: Artifact) -> str | None:
    """Which tensors of a GGUF its type could not take, and what they have become; None: none, or it is not recorded."""
    fallbacks = artifact.details.get("fallbacks") or []
    found = [match for line in fallbacks if (match := _FALLBACK.fullmatch(str(line)))]
    if artifact.kind != "gguf" or not found:
        return None
    types = Counter(match["type"] for match in found)
    columns = sorted({int(match["columns"]) for match in found})
    block = 32 if any(column % 32 for column in columns) else 256
    total = sum(artifact.details.get("tensor_types", {}).values())
    instead = " and ".join(f"{kind} ({count})" for kind, count in sorted(types.items()))
    return (
        f"{len(found)} of its {total} tensors are stored as {instead}: this type packs {block} values of a row "
        f"at a time, and these have {' or '.join(map(str, columns))} a row. The file is larger for it, and no worse."
    )


def storage(artifact: Artifact) -> tuple[str | None, float | None]:
    """How the weights are stored: (a name such as "q4_k_m", "f16" or ONNX's "int8", bits per weight); None: unknown."""
    if artifact.kind == "onnx":
        precision = artifact.details.get("precision") or precision_of(artifact.folder)
        return precision, artifact.details.get("bits_per_weight")
    quant, bits = artifact.details.get("quant"), artifact.details.get("bits_per_weight")
    if artifact.kind == "gguf":
        number = gguf_integer(artifact.gguf_path, "general.file_type")
        told = None if number is None else _FILE_TYPES.get(number)
        if quant is not None and told is not None and quant != told:
            raise AssayError(
                "the manifest says another type than the file, and each type has limits of its own",
                where=str(artifact.path),
                expected=told,
                got=str(quant)[:40],
                hint="export it again",
            )
        if quant is None or bits is None:
            found_quant, found_bits = _gguf_storage(artifact.gguf_path)
            quant, bits = quant or found_quant, bits or found_bits
        return quant, bits
    if artifact.kind == "merged":
        elements = _elements_by_dtype(artifact.folder)
        total = sum(elements.values())
        bits = sum(_STORED_BITS.get(dtype, 0) * count for dtype, count in elements.items()) / total
        return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(stored_dtype(artifact)), bits
    return None, None


def stored_dtype(artifact: Artifact) -> str:
    """The dtype most of a model folder's weights are stored in, as torch names it; float32 for any but 16-bit ones."""
    elements = _elements_by_dtype(artifact.folder)
    return _DTYPE_NAMES.get(max(elements, key=lambda dtype: elements[dtype]), "float32")


def _elements_by_dtype(folder: Path) -> dict[str, int]:
    """Weights per stored dtype, from the headers of the safetensors files (8 bytes of length, then JSON)."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            for name, tensor in header.items():
                if name != "__metadata__":
                    start, end = tensor["data_offsets"]
                    found[tensor["dtype"]] = found.get(tensor["dtype"], 0) + (end - start) * 8 // _STORED_BITS.get(
                        tensor["dtype"], 8
                    )
        except (struct.error, json.JSONDecodeError, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise AssayError(
                "not a safetensors file", where=str(path), got=f"{type(error).__name__}: {error}"
            ) from None
    if not found:
        raise AssayError("the folder has no safetensors weights", where=str(folder))
    return found


def _gguf_storage(path: Path) -> tuple[str | None, float | None]:
    try:
        import gguf
    except ImportError:
        raise NoEngineError(
            "reading a .gguf needs the gguf package", hint="in Assay's checkout: pip install -e '.[eval]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise AssayError("not a GGUF file that can be read", where=str(path), got=str(error)) from None
    field = reader.get_field("general.file_type")
    elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
    size_bytes = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    quant = _FILE_TYPES.get(int(field.contents())) if field is not None else None
    return quant, size_bytes * 8 / elements if elements else None


def base_identity(artifact: Artifact) -> str | None:
    """What an adapter of unknown origin runs on: its base's files by size and time. None where a digest is recorded."""
    if artifact.kind != "adapter" or artifact.parent("base") is not None:
        return None
    config = read_json(artifact.folder / "adapter_config.json")
    named = str(config.get("base_model_name_or_path"))
    base = resolve_model(named, config.get("revision"), beside=artifact.folder)
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in base.iterdir())
    return repr(files)


def added_tokens(artifact: Artifact) -> str | None:
    """A text of all tokens that were added to the artifact's vocabulary, special or not; None where it has none.

    An added token that an export lost is spelled in pieces there, and a special one must stay harmless in user text.
    """
    path = artifact.folder / "tokenizer.json"
    if artifact.kind == "gguf" or not path.is_file():
        return None
    contents = [str(token.get("content", "")) for token in read_json(path).get("added_tokens") or []]
    return " ".join(contents[:_MOST_ADDED_TOKENS]) or None
