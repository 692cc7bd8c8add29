"""The names of the tensors that a model folder stores, from safetensors' headers: no weight is read."""

from __future__ import annotations

import json
from pathlib import Path

from contract.errors import AssayError
from contract.model_folder import read_json

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def tensor_names(folder: Path) -> frozenset[str]:
    """Every tensor of model.safetensors, or of the index beside its shards; none where there are no weights.

    Raises:
        AssayError: the file is no safetensors file.
    """
    single = folder / "model.safetensors"
    if not single.is_file():
        return frozenset(read_json(folder / "model.safetensors.index.json").get("weight_map") or {})
    try:
        with single.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 0 < size <= _MAX_HEADER_BYTES else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise AssayError("this is no safetensors file", where=str(single))
    return frozenset(header) - {"__metadata__"}
