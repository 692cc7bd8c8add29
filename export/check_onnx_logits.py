"""Runs ONNX folders against torch: the same ids in, the same distributions and the same texts out.

Logits are compared twice: for a padded batch of rows of several lengths without cache, and step by step with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.failed import Failure
from contract.prompt import PromptSpec
from export.check_failed import BehaviourFailed, CheckFailed
from export.check_logits import log_softmax
from export.onnx_fp16 import LARGEST
from export.onnx_reference import Reference, Row, reference_of
from export.onnx_run import OnnxRunner

if TYPE_CHECKING:
    import numpy as np

    from contract.runtime import Runtime

FP32_MAX_ABS = 1e-3
MEAN_KL_NATS = {"fp32": 1e-6, "fp16": 5e-3, "int8": 1.0, "int4": 2.0}  # quantized: only a broken one is over
_WAYS = {"full": "without cache", "cached": "with cache"}
NOISE_MULTIPLE = 4.0  # fp32 may be so many times as far from torch as torch is from itself, batched


def check_logits(folder: Path, paths: Mapping[str, Path], spec: PromptSpec, threads: int) -> dict[str, dict[str, Any]]:
    """Compare each ONNX folder with the model folder it was made from, in torch in float32.

    Limits: fp32 at most 1e-3 between logits and 1e-6 nats mean KL(torch‖ONNX), or four times what batching changes in
    torch itself; its greedy texts and beams those of transformers (but where two choices are as near as that). fp16 at
    most 0.005 nats, and no activation beyond 65504. int8 1 nat and int4 2 nats, which only catches a broken one. Prompt
    ids and stop ids must be equal.

    Args:
        folder: a model folder.
        paths: precision -> ONNX folder.
        spec: the words around the documents.
        threads: CPU threads.

    Returns:
        precision -> {"noise", "full", "cached": {"positions", "max_abs", "mean_kl_nats", "top1_agreement"},
        "same_greedy", "same_beams": shares of texts, or None where beams are not compared}.

    Raises:
        BehaviourFailed: onnxruntime does not load or run a graph, ids or texts differ, or a limit is exceeded. All are
            named.
    """
    expected = reference_of(folder, spec, threads)
    noise = _compare(expected.logits, expected.noise)
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, list[Failure]] = {}
    for precision, path in paths.items():
        found[precision] = {"noise": noise}
        try:
            failed = _check(precision, path, expected, spec.date, threads, found[precision])
        except CheckFailed as error:  # it is not even loaded, or stops while it runs
            failed = [Failure("not_loadable", ": ".join(filter(None, [error.what, error.got])))]
        if failed:
            failures[precision] = failed
    if failures:
        raise BehaviourFailed(
            "the ONNX folder does not compute what its source does",
            where=str(folder),
            failures=failures,
            measured=found,
        )
    return found


def _check(
    precision: str, path: Path, expected: Reference, date: str, threads: int, found: dict[str, Any]
) -> list[Failure]:
    """What is wrong with one folder; its figures go into `found`, where the noise is already."""
    failed = []
    noise = found["noise"]
    runner = OnnxRunner(path, threads)
    for way, logits in (("full", runner.full(expected.rows)), ("cached", runner.cached(expected.rows))):
        found[way] = figures = _compare(expected.logits, logits)
        failed += _over_limit(precision, _WAYS[way], figures, noise)
    del runner
    if precision == "fp16":
        failed += _overflow(*expected.largest)
    near = _limit(FP32_MAX_ABS, noise["max_abs"])
    told, texts = _texts(path, expected, date, threads, near_tie=near if precision == "fp32" else None)
    found |= texts
    return failed + told


def _overflow(largest: float, module: str) -> list[Failure]:
    """A CPU computes a float16 graph in float32, so what would overflow elsewhere is measured in torch."""
    if largest <= LARGEST:
        return []
    text = f"activations at {module} reach {largest:.3g}, and float16 ends at {LARGEST:g}: take fp32 or int8"
    return [Failure("activations_too_large", text, largest, LARGEST)]


def _compare(expected: list[np.ndarray], found: list[np.ndarray]) -> dict[str, Any]:
    """Figures over all positions, in float64 from float32 logits."""
    import numpy as np

    kl, same, largest = [], [], []
    for reference, other in zip(expected, found, strict=True):
        log_p, log_q = (log_softmax(values.astype(np.float64)) for values in (reference, other))
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        same.append(reference.argmax(1) == other.argmax(1))
        largest.append(float(np.abs(reference.astype(np.float64) - other).max()))
    return {
        "positions": sum(map(len, kl)),
        "max_abs": float(np.max(largest)),
        "mean_kl_nats": float(np.concatenate(kl).mean()),
        "top1_agreement": float(np.concatenate(same).mean()),
    }


def _limit(at_least: float, noise: float) -> float:
    return max(at_least, NOISE_MULTIPLE * noise)


def _over_limit(precision: str, way: str, figures: dict[str, Any], noise: dict[str, Any]) -> list[Failure]:
    """Written so that NaN is over a limit."""
    limit = MEAN_KL_NATS[precision]
    limit = _limit(limit, noise["mean_kl_nats"]) if precision == "fp32" else limit
    failed = []
    if not (kl := figures["mean_kl_nats"]) <= limit:
        failed.append(Failure("mean_kl_nats", f"{way}: mean KL {kl:.3g} nats, at most {limit:g}", kl, limit))
    largest = _limit(FP32_MAX_ABS, noise["max_abs"])
    if precision == "fp32" and not (apart := figures["max_abs"]) <= largest:
        failed.append(Failure("max_abs", f"{way}: logits differ by {apart:.3g}, at most {largest:g}", apart, largest))
    return failed


def _texts(
    path: Path, expected: Reference, date: str, threads: int, *, near_tie: float | None
) -> tuple[list[Failure], dict[str, Any]]:
    """Ids and texts of the runtime that will serve the folder; None: other texts than torch's are no problem."""
    from runtimes import load_runtime

    failed = []
    told: dict[str, Any] = {"same_greedy": None, "same_beams": None}
    runtime = load_runtime(open_artifact(path), threads=threads, provider="cpu", date=date)
    try:
        other = [row for row in expected.rows if row.messages and runtime.encode(row.messages) != list(row.prompt)]
        if other:
            text = f"{len(other)} of {len(expected.rows)} prompts have other ids in onnxruntime"
            failed.append(Failure("prompt_ids_differ", text, len(other), 0))
        if lost := expected.stop_ids - runtime.stop_ids:
            text = f"torch stops at {sorted(expected.stop_ids)}, onnxruntime at {sorted(runtime.stop_ids)}"
            failed.append(Failure("stop_ids_differ", text, len(lost), 0))
        for name, texts in expected.texts.items():
            made = [tuple(c.ids) for c in runtime.generate([row.prompt for row in expected.rows], texts.params)]
            told[f"same_{name}"] = sum(a == b for a, b in zip(made, texts.ids, strict=True)) / len(made)
            for row, ours, theirs in zip(expected.rows, made, texts.ids, strict=True):
                if near_tie is not None and ours != theirs and not _is_near(runtime, row, ours, theirs, near_tie):
                    text = f"{name} text {list(ours[:12])} …, torch writes {list(theirs[:12])} …"
                    failed.append(Failure(f"{name}_text_differs", text))
    except AssayError as error:  # NaN logits, above all
        failed.append(Failure("not_loadable", f"it does not run: {error.what}"))
    finally:
        runtime.close()
    return failed, told


def _is_near(runtime: Runtime, row: Row, ours: tuple[int, ...], theirs: tuple[int, ...], near: float) -> bool:
    """Are the first two tokens that differ, or the two whole texts, about equally likely?"""
    import numpy as np

    stop = min(runtime.stop_ids)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    pair = [(*text, stop)[at] for text in (ours, theirs)]
    [logits] = runtime.score([(row.prompt, (*theirs[:at], pair[1]))])
    if abs(float(logits[at, pair[0]]) - float(logits[at, pair[1]])) <= near:
        return True
    likely = []
    for text in (ours, theirs):
        [logits] = runtime.score([(row.prompt, (*text, stop))])
        rows = log_softmax(logits.astype(np.float64))
        likely.append(float(np.mean([rows[i, token] for i, token in enumerate((*text, stop))])))
    return abs(likely[0] - likely[1]) <= near
