"""Runs GGUF files against torch on a handful of prompts: the same ids in, the same distributions out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import Artifact, open_artifact
from contract.errors import listed
from contract.prompt import PromptSpec
from export.check_gguf import CheckFailed
from export.quantize import LADDER

if TYPE_CHECKING:
    import numpy as np

    from contract.runtime import Runtime

F32_MAX_ABS = 1e-3
MEAN_KL_NATS = {"f32": 1e-5, "f16": 1e-4, "bf16": 1e-2}  # llama.cpp rounds activations to the weights' 16-bit type
_DOCUMENTS = (
    "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. I will tell Kesto about it.",
    "Tom: Bus 84 leaves at nine.\nAda: It costs 315 crowns!\nTom: Then we walk. See you at half past eight.",
    "A: 👍 naïve café?\nB: Да, 漢字。",
)
_ANSWER = "They moved the meeting to room 527."


def check_logits(
    model: Artifact, paths: Mapping[str, Path], threads: int, *, half_precision_activation: bool = False
) -> dict[str, dict[str, Any]]:
    """Compare each GGUF file with its source in torch, over every position of a few prompts with answers.

    Limits: F32 at most 1e-3 between logits (key-value cache in F32), or at most 1e-5 nats mean KL(torch‖GGUF) where
    llama.cpp computes activations in half precision; F16 at most 1e-4 nats, BF16 at most 1e-2; quantized files at most
    1 nat (2 nats from 4 bits, 4 nats from 2.5 bits), which only catches a broken one.

    Args:
        model: the source.
        paths: quantization -> GGUF file.
        threads: CPU threads.
        half_precision_activation: llama.cpp looks this architecture's GELU up in a table of half-precision values.

    Returns:
        quantization -> {"positions", "max_abs", "mean_kl_nats", "top1_agreement"}.

    Raises:
        CheckFailed: prompt ids differ, or a limit is exceeded. All are named.
    """
    from runtimes import load_runtime

    spec = PromptSpec.from_dict(model.details["prompt"]) if "prompt" in model.details else PromptSpec()
    adapter = model.kind == "adapter"
    reference = load_runtime(
        model, threads=threads, base_weights="w16" if adapter else None, merge_dtype="float32" if adapter else None
    )
    try:
        rows = _prompt_ids(reference, spec)
        expected = _logits(reference, rows)
        ends = reference.stop_ids
    finally:
        reference.close()
    found, problems = {}, []
    for quant, path in paths.items():
        runtime = load_runtime(open_artifact(path), threads=threads, kv_dtype="f32")
        try:
            if (ids := _prompt_ids(runtime, spec)) != rows:
                wrong = sum(a != b for a, b in zip(ids, rows, strict=True))
                problems.append(f"{quant}: {wrong} of {len(rows)} prompts have other ids in llama.cpp")
            if not ends <= runtime.stop_ids:
                problems.append(f"{quant}: torch stops at {sorted(ends)}, llama.cpp at {sorted(runtime.stop_ids)}")
            found[quant] = _compare(expected, _logits(runtime, [row[: runtime.context_length] for row in rows]))
        finally:
            runtime.close()
        problems += _over_limit(quant, found[quant], half_precision_activation)
    if problems:
        raise CheckFailed("the GGUF does not compute what its source does", where=str(model.path), got=listed(problems))
    return found


def _prompt_ids(runtime: Runtime, spec: PromptSpec) -> list[list[int]]:
    rows = []
    for document in _DOCUMENTS:
        messages = spec.messages(document)
        rows.append([*runtime.encode(messages), *runtime.encode_completion(messages, _ANSWER)])
    return rows


def _logits(runtime: Runtime, rows: list[list[int]]) -> list[np.ndarray]:
    """float32 [len(row) - 1, vocabulary] per row: the prediction of every token but the first."""
    return list(runtime.score([(row[:1], row[1:]) for row in rows]))


def _compare(expected: list[np.ndarray], found: list[np.ndarray]) -> dict[str, Any]:
    import numpy as np

    kept = [row[: len(other)] for row, other in zip(expected, found, strict=True)]  # a window may shorten a context
    reference = np.concatenate(kept).astype(np.float64)
    other = np.concatenate(found)[:, : reference.shape[1]].astype(np.float64)
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return {
        "positions": len(reference),
        "max_abs": float(np.abs(reference - other).max()),
        "mean_kl_nats": float(kl.mean()),
        "top1_agreement": float((reference.argmax(1) == other.argmax(1)).mean()),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _over_limit(quant: str, found: dict[str, Any], half_precision_activation: bool) -> list[str]:
    if quant == "f32" and not half_precision_activation:
        name, limit, unit = "max_abs", F32_MAX_ABS, ""
    else:
        name, limit, unit = "mean_kl_nats", MEAN_KL_NATS.get(quant, _broken(quant)), " nats"
    # written so that NaN is over the limit
    return [] if found[name] <= limit else [f"{quant}: {name} {found[name]:.3g}{unit}, at most {limit:g}"]


def _broken(quant: str) -> float:
    bits = LADDER[quant].bits
    return 1.0 if bits > 4 else 2.0 if bits > 2.5 else 4.0
