"""Dynamic int8: weight matrices and embeddings in 8 bits per channel, activations quantized while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contract.cpu import Cpu
from export.onnx_graph import OnnxGraph

if TYPE_CHECKING:
    import onnx

WEIGHT, SCALE, ZERO = ".int8", ".scale", ".zero"
_FULL, _REDUCED = 127, 63


def int8_range(cpu: Cpu) -> int:
    """The largest weight: 127, or 63 where the processor adds two products in 16 bits, which would saturate."""
    return _FULL if cpu.int8_is_exact else _REDUCED


def quantize_int8(graph: OnnxGraph, most: int) -> tuple[OnnxGraph, dict[str, Any]]:
    """Quantize every product with a stored matrix, and every lookup of token embeddings.

    A product becomes DynamicQuantizeLinear (uint8 activations), MatMulInteger with symmetric weights that have a scale
    per output channel, and a multiplication with both scales: the form onnxruntime fuses into one kernel. Embeddings
    have a scale per row, and just the rows looked up are turned back into floats.

    Args:
        graph: in float32; stays as it is.
        most: the largest quantized value, see `int8_range`.

    Returns:
        The graph, and what was quantized: operators and how many, and weight matrices that stay float.
    """
    writer = _Writer(graph, most, products=True)
    made = writer.written()
    return made, {"MatMul": writer.products, "Gather": writer.lookups, "kept_float": sorted(float_matrices(made))}


def quantize_lookups(graph: OnnxGraph) -> tuple[OnnxGraph, int]:
    """Quantize lookups of token embeddings only; the graph, and how many there are."""
    writer = _Writer(graph, _FULL, products=False)
    return writer.written(), writer.lookups


def float_matrices(graph: OnnxGraph) -> set[str]:
    """Names of weight matrices that products still take as floats."""
    import numpy as np

    return {
        name
        for node in graph.nodes
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input
        if name in graph.weights and graph.weights[name].ndim >= 2 and graph.weights[name].dtype == np.float32
    }


class _Writer:
    """Writes a graph anew; what is quantized once is used wherever it is needed."""

    def __init__(self, graph: OnnxGraph, most: int, *, products: bool) -> None:
        self._graph, self._most, self._with_products = graph, most, products
        self._nodes: list[onnx.NodeProto] = []
        self._weights = dict(graph.weights)
        self._makers = {name: node for node in graph.nodes for name in node.output}
        self._activations: set[str] = set()
        self.products = self.lookups = 0

    def written(self) -> OnnxGraph:
        """The new graph."""
        for node in self._graph.nodes:
            weight = next((name for name in node.input if name in self._weights), None)
            if weight is None or self._weights[weight].ndim != 2:
                self._nodes.append(node)
            elif node.op_type == "MatMul" and node.input[1] == weight and self._with_products:
                self._product(node, weight)
            elif node.op_type == "Gather" and self._looks_up_tokens(node):
                self._lookup(node, weight)
            else:
                self._nodes.append(node)
        made = self._graph.copy()
        made.set_nodes(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        made.set_weights({name: values for name, values in sorted(self._weights.items()) if name in used})
        return made

    def _looks_up_tokens(self, node: onnx.NodeProto) -> bool:
        """Are its indices the input ids? (Learned and relative positions are small, and stay float.)"""
        name = node.input[1]
        while name in self._makers and self._makers[name].op_type in ("Reshape", "Cast", "Identity"):
            name = self._makers[name].input[0]
        return name == "input_ids"

    def _product(self, node: onnx.NodeProto, weight: str) -> None:
        import onnx

        self._quantize(weight, axis=0)
        source, result = node.input[0], node.output[0]
        values, scale, zero = (f"{source}_{part}" for part in ("quantized", "scale", "zero_point"))
        if source not in self._activations:
            self._activations.add(source)
            self._add("DynamicQuantizeLinear", [source], [values, scale, zero], f"{source}_DynamicQuantizeLinear")
        self._add(
            "MatMulInteger", [values, weight + WEIGHT, zero, weight + ZERO], [f"{result}_int32"], f"{node.name}_int8"
        )
        self._add("Cast", [f"{result}_int32"], [f"{result}_float"], f"{node.name}_cast", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [scale, weight + SCALE], [f"{result}_scale"], f"{node.name}_scales")
        self._add("Mul", [f"{result}_float", f"{result}_scale"], [result], f"{node.name}_scaled")
        self.products += 1

    def _lookup(self, node: onnx.NodeProto, weight: str) -> None:
        import onnx

        self._quantize(weight, axis=1)
        ids, result = node.input[1], node.output[0]
        rows, scales = f"{result}_int8", f"{result}_scale"
        self._add("Gather", [weight + WEIGHT, ids], [rows], f"{node.name}_int8")
        self._add("Gather", [weight + SCALE, ids], [scales], f"{node.name}_scale")
        self._add("Cast", [rows], [f"{rows}_float"], f"{node.name}_cast", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [f"{rows}_float", scales], [result], f"{node.name}_scaled")
        self.lookups += 1

    def _quantize(self, name: str, *, axis: int) -> None:
        """Store a matrix as int8; along `axis` all values have one scale."""
        import numpy as np

        if name + WEIGHT in self._weights:
            return
        values = np.asarray(self._weights[name])
        scale = (np.abs(values).max(axis=axis, keepdims=True) / np.float32(self._most)).astype(np.float32)
        scale[scale == 0] = 1.0
        self._weights[name + WEIGHT] = np.rint(values / scale).clip(-self._most, self._most).astype(np.int8)
        self._weights[name + SCALE] = scale if axis == 1 else scale[0]
        if axis == 0:
            self._weights[name + ZERO] = np.zeros(values.shape[1], np.int8)

    def _add(self, kind: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        import onnx

        self._nodes.append(onnx.helper.make_node(kind, inputs, outputs, name=name, **attributes))
