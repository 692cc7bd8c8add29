"""Compares every initializer of ONNX graphs with the tensor it was made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from contract.cpu import Cpu
from export import onnx_int4, onnx_int8
from export.onnx_graph import OnnxGraph
from export.onnx_source import SourceTensors

if TYPE_CHECKING:
    import numpy as np

_INT4_ERROR = 0.25  # ‖x - q‖/‖x‖, as for a 4-bit GGUF type; Gaussian weights in blocks of 32 show half of it
_HALF_STEP = 2.0**-11  # of float16, relative
_SMALLEST_HALF = 5.97e-8  # float16's smallest number, to which smaller ones are raised
_ROUNDING = 1.001  # of float32 arithmetic on top of half a quantization step
_INT7 = 63
_SATURATED = 1e-3  # share of a matrix cut off at the largest value
_PRODUCT = re.compile(r"(/Gemm)?(/MatMul)?(_int8|_int4)?$")


def value_problems(
    graphs: Sequence[OnnxGraph], source: SourceTensors, expected: Iterable[str], cpu: Cpu
) -> tuple[list[str], dict[str, float]]:
    """Is every initializer its source tensor, rounded no more than its type must, and is every tensor there?

    float32 must be equal bit for bit; float16, int8 and int4 lie within their rounding.

    Args:
        graphs: of one artifact.
        source: the tensors.
        expected: names of tensors that the model has; each must be in some graph, itself or one equal to it.
        cpu: this machine's; int8 of full range is refused where it would saturate.

    Returns:
        The problems, and the largest relative error ‖x - q‖/‖x‖ per dtype.
    """
    problems: list[str] = []
    errors: dict[str, float] = {}
    found: set[str] = set()
    for graph in graphs:
        problems += [f"{graph.name}: {problem}" for problem in _misplaced(graph, source)]
        for name in graph.weights:
            stem, kind = _stem(name)
            if kind == "part":
                continue
            values = source.in_graph(stem)
            if values is None:
                problems.append(f"{graph.name}: {name} is none of the model's tensors")
                continue
            problem, error = _compare(graph, name, stem, kind, values, cpu)
            problems += [f"{graph.name}: {problem}"] if problem else []
            errors[kind] = max(errors.get(kind, 0.0), round(error, 6))
            found.add(stem)
    stored = {name for name in source.names if any(name + form in found for form in ("", ".T", ".plus_one"))}
    missing = [name for name in expected if name not in stored and not source.same_as(name) & stored]
    return [*problems, *(f"{name}: in no graph" for name in missing)], errors


def _misplaced(graph: OnnxGraph, source: SourceTensors) -> Iterator[str]:
    """Does each layer's product, which is named after the layer, take that layer's weight?"""
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "MatMulInteger", "MatMulNBits") or node.input[1] not in graph.weights:
            continue
        layer = _PRODUCT.sub("", node.name).strip("/").replace("/", ".")
        own = [name for name in source.names if f".{name}".endswith(f".{layer}.weight")]
        stem = _stem(node.input[1])[0].removesuffix(".T")
        if own and stem in source.names and not any(stem in source.same_as(name) for name in own):
            yield f"the layer {layer} multiplies with {stem}"


def _stem(name: str) -> tuple[str, str]:
    """The tensor's name, and how it is stored; "part" for scales and zero points."""
    for suffix, kind in ((onnx_int8.WEIGHT, "int8"), (onnx_int4.WEIGHT, "int4")):
        if name.endswith(suffix):
            return name.removesuffix(suffix), kind
    if name.endswith((onnx_int8.SCALE, onnx_int8.ZERO)):
        return name, "part"
    return name, "float"


def _compare(
    graph: OnnxGraph, name: str, stem: str, kind: str, values: np.ndarray, cpu: Cpu
) -> tuple[str | None, float]:
    import numpy as np

    stored = graph.weights[name]
    if kind == "int8":
        return _int8(graph, name, stem, values, cpu)
    if kind == "int4":
        return _int4(graph, name, stem, values)
    if stored.shape != values.shape:
        return f"{name} has shape {list(stored.shape)}, its tensor {list(values.shape)}", np.inf
    if stored.dtype == np.float32:
        same = np.array_equal(stored, values)
        return None if same else f"{name} is not its tensor: {_first(stored, values)}", _error(stored, values)
    if stored.dtype != np.float16:
        return f"{name} has dtype {stored.dtype}", np.inf
    off = np.abs(stored.astype(np.float32) - values) > np.maximum(np.abs(values) * _HALF_STEP, _SMALLEST_HALF)
    off |= ~np.isfinite(stored)
    problem = f"{name} is more than float16's rounding away from its tensor: {_first(stored, values, off)}"
    return problem if off.any() else None, _error(stored, values)


def _int8(graph: OnnxGraph, name: str, stem: str, values: np.ndarray, cpu: Cpu) -> tuple[str | None, float]:
    import numpy as np

    stored = graph.weights[name]
    scale, zero = graph.weights.get(stem + onnx_int8.SCALE), graph.weights.get(stem + onnx_int8.ZERO)
    if scale is None or stored.dtype != np.int8 or stored.shape != values.shape:
        return f"{name} is not an int8 matrix {list(values.shape)} with scales", np.inf
    if zero is not None and zero.any():
        return f"{name} has zero points other than 0", np.inf
    read = stored.astype(np.float32) * scale
    most = int(np.abs(stored.astype(np.int16)).max(initial=0))
    multiplied = any(name in node.input for node in graph.nodes if node.op_type != "Gather")
    if most > _INT7 and multiplied and not cpu.int8_is_exact:  # rows that are looked up are added to nothing
        return (
            f"{name} uses all 8 bits, and int8 products saturate on this processor ({cpu.model}, no VNNI)",
            _error(read, values),
        )
    off = ~(np.abs(read - values) <= np.abs(scale) / 2 * _ROUNDING + 1e-30)
    clipped = off & (np.abs(stored.astype(np.int16)) >= most) & (np.abs(values) > np.abs(read))
    if clipped.mean() > _SATURATED:
        return f"{name} is saturated: {clipped.mean():.1%} of its weights are cut off at ±{most}", _error(read, values)
    problem = f"{name} is more than int8's rounding away from its tensor: {_first(read, values, off)}"
    return problem if off.any() else None, _error(read, values)


def _int4(graph: OnnxGraph, name: str, stem: str, values: np.ndarray) -> tuple[str | None, float]:
    import numpy as np

    scales, zeros = graph.weights.get(stem + onnx_int4.SCALE), graph.weights.get(stem + onnx_int4.ZERO)
    if scales is None or zeros is None:
        return f"{name} has no scales or zero points", np.inf
    read = onnx_int4.dequantized(graph.weights[name], scales, zeros, len(values))
    if read.shape != values.shape:
        return f"{name} has shape {list(read.shape)}, its tensor {list(values.shape)}", np.inf
    steps = np.repeat(np.abs(scales.reshape(len(scales), -1)), onnx_int4.BLOCK, axis=1)[:, : len(values)].T
    off = ~(np.abs(read - values) <= steps * _ROUNDING + 1e-30)
    error = _error(read, values)
    if not error <= _INT4_ERROR and not off.any():
        return f"{name} differs from its tensor, relative error {error:.3g} over {_INT4_ERROR}", error
    problem = f"{name} is more than int4's rounding away from its tensor: {_first(read, values, off)}"
    return problem if off.any() else None, error


def _error(read: Any, values: np.ndarray) -> float:
    """‖read - values‖ / ‖values‖."""
    import numpy as np

    difference = np.asarray(read, np.float32) - values
    norm = float(np.linalg.norm(values))
    away = float(np.linalg.norm(difference))
    return away / norm if norm else (0.0 if away == 0 else np.inf)


def _first(read: Any, values: np.ndarray, off: np.ndarray | None = None) -> str:
    import numpy as np

    off = np.asarray(read) != values if off is None else off
    if not off.any():
        return ""
    at = tuple(int(index) for index in np.argwhere(off)[0])
    return f"{int(off.sum())} of {off.size} values, the first at {list(at)}: {read[at]:.6g}, expected {values[at]:.6g}"
