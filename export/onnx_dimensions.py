"""Says once in a graph what its dimensions are, where a trace asks every tensor for its own.

A traced graph asks tensor after tensor for the batch size, the length or the number of heads, and works out shapes
from the answers: in a small model half of all nodes. Shape inference knows the answers from the inputs' named
dimensions. With one node per name, what is worked out from them is the same for all layers, and the engine, which
computes equal expressions once, drops the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.onnx_graph import OnnxGraph

if TYPE_CHECKING:
    import numpy as np
    import onnx

Dimension = int | str | None
_SMALL = 64  # numbers; shapes and indices are not longer


def settle_dimensions(graph: OnnxGraph) -> None:
    """Replace every Gather of one dimension out of a tensor's Shape by a constant or by a dimension of an input.

    A dimension that shape inference does not name stays as it was.
    """
    import numpy as np
    import onnx

    shapes = shapes_of(graph)
    inputs = [value.name for value in graph.proto.graph.input]
    named = {
        size: (name, axis)
        for name in reversed(inputs)
        for axis, size in enumerate(shapes[name])
        if isinstance(size, str)
    }
    asked = {node.output[0]: node.input[0] for node in graph.nodes if node.op_type == "Shape" and not node.attribute}
    constants = constants_of(graph)
    outputs = {output.name for output in graph.proto.graph.output}
    first: dict[str, onnx.NodeProto] = {}
    stands_for: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        index = constants.get(node.input[1]) if node.op_type == "Gather" and node.input[0] in asked else None
        shape = shapes.get(asked[node.input[0]]) if index is not None and index.ndim == 0 else None
        size = shape[int(index)] if shape and index is not None else None
        if isinstance(size, int):
            value = onnx.numpy_helper.from_array(np.array(size, np.int64))
            nodes.append(onnx.helper.make_node("Constant", [], list(node.output), name=node.name, value=value))
        elif size in named and node.output[0] not in outputs:
            stands_for[node.output[0]] = size_node(first, *named[size])
        else:
            nodes.append(node)
    for node in nodes:
        for position, name in enumerate(node.input):
            node.input[position] = stands_for.get(name, name)
    graph.set_nodes(needed([*first.values(), *nodes], outputs))


def shapes_of(graph: OnnxGraph) -> dict[str, list[Dimension]]:
    """What shape inference knows of every tensor: a number, a name or nothing for each of its dimensions."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto)
    for index, (name, values) in enumerate(graph.weights.items()):
        if values.size <= _SMALL:
            proto.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, name))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if (shape := value.type.tensor_type.shape) is not None and value.type.tensor_type.HasField("shape")
    }


def constants_of(graph: OnnxGraph) -> dict[str, np.ndarray]:
    """The small tensors whose values stand in the graph."""
    import onnx

    found = {name: values for name, values in graph.weights.items() if values.size <= _SMALL}
    for node in graph.nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    return found


def size_node(first: dict[str, onnx.NodeProto], name: str, axis: int) -> str:
    """The name of a dimension of an input; the nodes that ask for it are added where they are not there yet."""
    import numpy as np
    import onnx

    shape, index, size = f"{name}_shape", f"axis_{axis}", f"{name}_size_{axis}"
    value = onnx.numpy_helper.from_array(np.array(axis, np.int64))
    first.setdefault(shape, onnx.helper.make_node("Shape", [name], [shape], shape))
    first.setdefault(index, onnx.helper.make_node("Constant", [], [index], index, value=value))
    first.setdefault(size, onnx.helper.make_node("Gather", [shape, index], [size], size, axis=0))
    return size


def needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Without the nodes whose outputs nothing reads any more."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output):
            continue
        wanted.update(node.input)
        kept.append(node)
    return kept[::-1]
