"""Which limits an artifact stands under follows from how its weights are stored."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from contract.artifact import new_artifact
from contract.limits import GatePart
from evalsuite.identity import storage, stored_otherwise


@pytest.mark.parametrize(("dtype", "quant", "bits"), [("F32", "f32", 32), ("F16", "f16", 16), ("BF16", "bf16", 16)])
def test_a_folder_stands_under_the_limits_of_its_own_dtype(tmp_path: Path, dtype: str, quant: str, bits: int) -> None:
    size = 8 * bits // 8
    header = json.dumps({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}).encode()
    with new_artifact(tmp_path / "merged", "merged", "m") as draft:
        (draft.path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    assert storage(draft.finished) == (quant, bits)
    limits = GatePart().limits_of("merged", quant)
    assert limits is not None
    assert limits.max_kl_nats == {"f32": 1e-6, "f16": 1e-4, "bf16": 1e-3}[quant], "bfloat16 is eight times coarser"


def test_tensors_that_a_type_could_not_take_are_told_in_words(tmp_path: Path) -> None:
    kinds = ("Q5_0", "Q5_0", "Q8_0")
    details = {
        "fallbacks": [f"blk.{at}.attn_q.weight: {kind}, 576 columns" for at, kind in enumerate(kinds)],
        "tensor_types": {"Q5_0": 2, "Q8_0": 1, "F32": 4},
    }
    with new_artifact(tmp_path / "q4_k_m", "gguf", "m", details=details) as draft:
        (draft.path / "m.gguf").write_bytes(b"GGUF")
    told = stored_otherwise(draft.finished)
    assert told is not None
    assert told.startswith("3 of its 7 tensors are stored as Q5_0 (2) and Q8_0 (1): this type packs 256 values")
    draft.finished.details["fallbacks"].clear()
    assert stored_otherwise(draft.finished) is None
