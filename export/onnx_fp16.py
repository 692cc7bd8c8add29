"""float16 for CUDA: products, attention and cache in half precision; norms, logits and encoder states in float32."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from contract.errors import AssayError, listed
from export.onnx_graph import PAST, PRESENT, OnnxGraph, sort_nodes

if TYPE_CHECKING:
    import numpy as np
    import onnx

LARGEST = 65504.0
# Squares of activations, rotation angles, and T5's feed-forward behind its gate and its sums leave float16's range
_IN_FLOAT32 = re.compile(r"norm|rotary|/layer\.\d+/Add|DenseReluDense/(act|Mul|dropout|wo|Cast)", re.IGNORECASE)


def convert_float16(graph: OnnxGraph) -> tuple[OnnxGraph, int]:
    """Convert a float32 graph with onnxruntime's own converter.

    Args:
        graph: in float32; stays as it is.

    Returns:
        The graph, and how many nodes stay in float32.

    Raises:
        AssayError: weights float16 cannot hold; all are named.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    refuse_overflow(graph.weights)
    kept = [node.name for node in graph.nodes if _IN_FLOAT32.search(node.name)]
    ends = [*graph.proto.graph.input, *graph.proto.graph.output]
    whole = [item.name for item in ends if not item.name.startswith((PAST, PRESENT))]
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)  # it prints whole nodes
    proto = convert_float_to_float16(_typed(graph), keep_io_types=whole, node_block_list=kept, disable_shape_infer=True)
    del proto.graph.value_info[:]
    weights: dict[str, np.ndarray] = {}
    for tensor in proto.graph.initializer:
        half = tensor.data_type == onnx.TensorProto.FLOAT16
        weights[tensor.name] = onnx.numpy_helper.to_array(tensor) if half else graph.weights[tensor.name]
    made = OnnxGraph(graph.name, proto, {})
    made.set_weights(weights)
    _drop_round_trips(made)
    made.set_nodes({tuple(node.output): node for node in made.nodes}.values())  # it appends some casts twice
    sort_nodes(made)
    return made, len(kept)


def refuse_overflow(weights: Mapping[str, np.ndarray]) -> None:
    """Raise where a weight is beyond float16.

    Raises:
        AssayError: naming all of them, with their largest value.
    """
    import numpy as np

    beyond = {
        name: float(np.abs(values).max())
        for name, values in weights.items()
        if values.dtype == np.float32 and values.size and not np.abs(values).max() <= LARGEST
    }
    if beyond:
        raise AssayError(
            "weights do not fit into float16",
            expected=f"at most {LARGEST:g}",
            got=listed(f"{name} (max {most:g})" for name, most in beyond.items()),
            hint="take fp32 or int8",
        )


def _typed(graph: OnnxGraph) -> onnx.ModelProto:
    """The graph with every type inferred, then with its values: a proto with values cannot be sent through inference.

    (Inference takes its graph as one message, which ends at 2 GB.)
    """
    import numpy as np
    import onnx

    hollow = graph.copy().proto
    for tensor in hollow.graph.initializer:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="none")
    proto = onnx.shape_inference.infer_shapes(hollow)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(graph.weights[tensor.name]), tensor.name))
    return proto


def _drop_round_trips(graph: OnnxGraph) -> None:
    """Hand values from one float32 node to the next as they are: the converter puts them through float16 in between."""
    import onnx

    def to(node: onnx.NodeProto) -> int | None:
        return node.attribute[0].i if node.op_type == "Cast" else None

    makers = {name: node for node in graph.nodes for name in node.output}
    whole: dict[str, str] = {}
    for node in graph.nodes:
        before = makers.get(node.input[0]) if node.input else None
        if before is None or to(node) != onnx.TensorProto.FLOAT or to(before) != onnx.TensorProto.FLOAT16:
            continue
        if node.name.endswith("_cast_to_fp32_node") and before.name.endswith("_cast_to_fp16_node"):
            whole[node.output[0]] = before.input[0]
    for node in graph.nodes:
        for at, name in enumerate(node.input):
            node.input[at] = whole.get(name, name)
    used = {name for node in graph.nodes for name in node.input} | {item.name for item in graph.proto.graph.output}
    graph.set_nodes([node for node in graph.nodes if used.intersection(node.output)])
