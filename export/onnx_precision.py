"""From traced float32 graphs to those of one precision, and what the manifest says of how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from contract.cpu import this_cpu
from export.onnx_attention import fuse_attention
from export.onnx_fp16 import convert_float16
from export.onnx_graph import OnnxGraph, share_transposed
from export.onnx_int4 import BLOCK, quantize_int4
from export.onnx_int8 import int8_range, quantize_int8


def convert(graphs: Sequence[OnnxGraph], precision: str) -> tuple[list[OnnxGraph], dict[str, Any]]:
    """Convert every sub-model.

    Args:
        graphs: in float32; they stay as they are.
        precision: "fp32", "fp16", "int8" or "int4".

    Returns:
        The graphs, with one operator for each attention of a causal model (not in fp16, which is for CUDA); and how:
        the parameters, operators and how many of each over all sub-models, weight matrices kept in float32; for int8
        the processor whose features chose the range.
    """
    if precision != "fp16":
        fused = [fuse_attention(graph) for graph in graphs]
        graphs = [graph for graph, _ in fused]
    match precision:
        case "fp32":
            made = [graph.copy() for graph in graphs]
            how: dict[str, Any] = {}
        case "fp16":
            halves = [convert_float16(graph) for graph in graphs]
            made = [graph for graph, _ in halves]
            how = {"nodes_in_float32": sum(count for _, count in halves), "cache": "float16"}
        case "int8":
            cpu = this_cpu()
            most = int8_range(cpu)
            quantized = [quantize_int8(graph, most) for graph in graphs]
            made = [graph for graph, _ in quantized]
            how = {
                **_totals([found for _, found in quantized]),
                "weights": "int8 per channel, symmetric",
                "activations": "uint8 per tensor, dynamic",
                "range": "full" if most == 127 else "reduced",
                "largest": most,
                "cpu": asdict(cpu),
            }
        case _:
            quantized = [quantize_int4(graph) for graph in graphs]
            made = [graph for graph, _ in quantized]
            how = {
                **_totals([found for _, found in quantized]),
                "weights": "uint4 in blocks, with zero points",
                "activations": "int8 per row and block, dynamic",
                "block_size": BLOCK,
            }
    for graph in made:
        share_transposed(graph)
    return made, how


def _totals(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    operators: Counter[str] = Counter()
    for one in found:
        operators.update({name: one[name] for name in ("MatMul", "Gather")})
    kept = sorted({name for one in found for name in one["kept_float"]})
    return {"operators": dict(operators), "kept_float": kept}
