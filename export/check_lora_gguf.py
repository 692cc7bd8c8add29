"""Reads a LoRA GGUF back: every matrix against the adapter's, every scaled product against what merging would add."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from contract.errors import listed
from export.adapted import AdaptedWeights
from export.check_gguf import CheckFailed
from export.gguf_family import interleave_halves
from export.lora_gguf_file import LoraType, pair_values
from export.lora_gguf_plan import LoraPair, LoraPlan
from export.weights import BLOCK_VALUES

# The most ‖product - delta‖/‖delta‖: rounding both factors to float16 costs about 4e-4 unless most of it cancels out.
ERROR_LIMITS: dict[LoraType, float] = {"f32": 1e-5, "f16": 5e-3}


def check_lora(path: Path, plan: LoraPlan, weights: AdaptedWeights, lora_type: LoraType) -> float:
    """Compare a file with the adapter it was made from.

    Returns:
        The largest relative error of a pair's alpha / rank · B·A, in the Frobenius norm.

    Raises:
        CheckFailed: naming every key and tensor that differs.
    """
    import numpy as np
    from gguf import GGUFReader

    reader = GGUFReader(path)
    problems = _metadata(reader, plan)
    found = {tensor.name: tensor for tensor in reader.tensors}
    wanted = {f"{pair.tensor.name}.lora_{suffix}" for pair in plan.pairs for suffix in "ab"}
    problems += [f"{name}: missing" for name in sorted(wanted - set(found))]
    problems += [f"{name}: not expected" for name in sorted(set(found) - wanted)]
    worst = 0.0
    for pair in plan.pairs:
        stored = []
        for name, values in pair_values(pair, weights, lora_type, path.name):
            if name not in found:
                continue
            data = found[name].data
            if data.dtype != values.dtype or data.shape != values.shape:
                problems.append(f"{name}: {data.dtype} {data.shape}, expected {values.dtype} {values.shape}")
                continue
            if not np.array_equal(data, values):
                problems.append(f"{name}: differs from its source")
            stored.append(data)
        if len(stored) == 2:
            error = _product_error(pair, weights, _alpha(reader), *stored)
            worst = max(worst, error)
            if not error <= ERROR_LIMITS[lora_type]:
                problems.append(f"{pair.tensor.name}: its scaled product has a relative error of {error:.3g}")
    if problems:
        raise CheckFailed(
            "the LoRA GGUF is not what it was made from",
            where=path.name,
            got=listed(problems, 20),
            hint="--dtype f32" if lora_type == "f16" else None,
        )
    return worst


def _alpha(reader: Any) -> float:
    field = reader.get_field("adapter.lora.alpha")
    return math.nan if field is None else float(field.contents())


def _metadata(reader: Any, plan: LoraPlan) -> list[str]:
    expected = {"general.type": "adapter", "general.architecture": plan.arch, "adapter.type": "lora"}
    found = {key: None if (field := reader.get_field(key)) is None else field.contents() for key in expected}
    problems = [f"{key}: {found[key]!r}, expected {value!r}" for key, value in expected.items() if found[key] != value]
    if not math.isclose(alpha := _alpha(reader), plan.alpha, rel_tol=1e-6):
        problems.append(f"adapter.lora.alpha: {alpha:g}, expected {plan.alpha:g}")
    return problems


def _product_error(pair: LoraPair, weights: AdaptedWeights, alpha: float, a: Any, b: Any) -> float:
    """‖alpha / rank · B·A - delta‖ / ‖delta‖ of what is stored and of what merging adds, some rows at a time."""
    import torch

    change, layout = pair.change, pair.tensor.layout
    add = change.prepare(weights.adapter.read, lambda: iter(()))
    lora_a, lora_b = torch.from_numpy(a.copy()).float(), torch.from_numpy(b.copy()).float()
    if layout.heads is not None:
        order = interleave_halves(torch.arange(len(lora_b)), layout.heads)  # row of the GGUF -> row of the base
        lora_b = torch.empty_like(lora_b).index_copy_(0, order, lora_b)
    if pair.embedded:
        left, right = lora_a, lora_b.T
    else:
        left, right = (lora_a.T, lora_b.T) if layout.transposed else (lora_b, lora_a)
    difference, norm, scale = 0.0, 0.0, alpha / b.shape[1]
    step = max(1, BLOCK_VALUES // right.shape[1])
    for start in range(0, len(left), step):
        product = left[start : start + step] @ right
        delta = add(torch.zeros_like(product), start)
        difference += float((product * scale - delta).square().sum())
        norm += float(delta.square().sum())
    return math.sqrt(difference / norm) if norm else math.inf if difference else 0.0
