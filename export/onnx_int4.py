"""int4: MatMulNBits, blocks of 32 weights with a scale and a zero point; its kernels round activations to 8 bits.

They do so for each row and block by itself, as llama.cpp's do, so that no row depends on another. Lookups of token
embeddings get 8 bits: the table may be tied to the last product, and rows are cheap to turn back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contract.errors import AssayError
from export.onnx_graph import OnnxGraph
from export.onnx_int8 import float_matrices, quantize_lookups

if TYPE_CHECKING:
    import numpy as np
    import onnx

BLOCK = 32
WEIGHT, SCALE, ZERO = ".int4", ".scale", ".zero"
_INT8_ACCURACY = 4  # of MatMulNBits; float32 (1) is hardly more exact, and for one token three to six times slower


def quantize_int4(graph: OnnxGraph) -> tuple[OnnxGraph, dict[str, Any]]:
    """Quantize every product with a stored matrix through onnxruntime's own kernel; the rest stays float32.

    Args:
        graph: in float32; stays as it is.

    Returns:
        The graph, and what was quantized: operators and how many, and weight matrices that stay float.

    Raises:
        AssayError: onnx-ir, which onnxruntime's quantizer needs, is not installed.
    """
    import onnx

    made, lookups = quantize_lookups(graph)
    weights = dict(made.weights)
    nodes: list[onnx.NodeProto] = []
    products = 0
    for node in made.nodes:
        weight = node.input[1] if node.op_type == "MatMul" else ""
        if weight not in weights or weights[weight].ndim != 2:
            nodes.append(node)
            continue
        if weight + WEIGHT not in weights:
            packed, scales, zeros = _blocks(weights[weight])
            weights |= {weight + WEIGHT: packed, weight + SCALE: scales, weight + ZERO: zeros}
        rows, columns = weights[weight].shape
        nodes.append(
            onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], weight + WEIGHT, weight + SCALE, weight + ZERO],
                [node.output[0]],
                name=f"{node.name}_int4",
                domain="com.microsoft",
                K=rows,
                N=columns,
                bits=4,
                block_size=BLOCK,
                accuracy_level=_INT8_ACCURACY,
            )
        )
        products += 1
    made.set_nodes(nodes)
    made.proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    used = {name for node in nodes for name in node.input}
    made.set_weights({name: values for name, values in sorted(weights.items()) if name in used})
    return made, {"MatMul": products, "Gather": lookups, "kept_float": sorted(float_matrices(made))}


def _blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix [K, N] as uint8 [N, blocks, 16] (low half first), float32 scales and packed zero points [N, …]."""
    import numpy as np

    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    except ImportError as error:
        raise AssayError(
            f"int4 needs a package that is not installed: {error.name}",
            hint="in Assay's checkout: pip install -e '.[export,cpu]'",
        ) from None
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=4)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(values))
    return packed, scales, zeros


def dequantized(packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray, rows: int) -> np.ndarray:
    """The matrix [rows, N] in float32 that MatMulNBits multiplies with."""
    import numpy as np

    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32)
    zero = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(zeros), -1)[:, : packed.shape[1], None]
    values = (halves - zero) * scales.reshape(packed.shape[:2])[..., None]
    return values.reshape(len(packed), -1)[:, :rows].T
