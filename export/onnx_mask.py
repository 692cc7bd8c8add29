"""Says in ten nodes what a causal trace says in sixty: who sees whom. Only where both are proven to say the same.

Every position sees itself and what stands before it, but no padding. The proof runs both on a few cases: with and
without a cache, one row and several, padding anywhere; and one longer than any window that attention is limited to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.onnx_dimensions import needed, size_node
from export.onnx_graph import ATTENTION, PAST, OnnxGraph, sort_nodes

if TYPE_CHECKING:
    import numpy as np
    import onnx

_MASK = "seen"
# rows, positions in the cache, new ones; the last costs little, as only the cache's shape is asked for
_CASES = ((1, 0, 5), (1, 4, 1), (2, 3, 4), (3, 0, 2), (1, 1 << 17, 2))


def settle_mask(graph: OnnxGraph) -> None:
    """Let all Attention nodes of a causal graph take one mask, made of few nodes, if theirs are all equal to it."""
    nodes = [node for node in graph.nodes if node.op_type == ATTENTION]
    traced = sorted({node.input[3] for node in nodes})
    inputs = {value.name for value in graph.proto.graph.input}
    past = next((name for name in sorted(inputs) if name.startswith(PAST)), None)
    if past is None or not {"input_ids", "attention_mask"} <= inputs:
        return
    made = graph.copy()
    there = {name for node in graph.nodes for name in node.output}
    made.set_nodes([*graph.nodes, *(node for node in _plain_mask(past) if node.output[0] not in there)])
    sort_nodes(made)
    if not _all_equal(made, [_MASK, *traced]):
        return
    for node in made.nodes:
        if node.op_type == ATTENTION:
            node.input[3] = _MASK
    sort_nodes(made)
    graph.set_nodes(needed(list(made.nodes), {output.name for output in graph.proto.graph.output}))


def _plain_mask(past: str) -> list[onnx.NodeProto]:
    """Nodes that make `_MASK`, bool [rows, 1, new positions, all positions]."""
    import onnx

    def constant(name: str, value: int | list[int]) -> onnx.NodeProto:
        import numpy as np

        values = onnx.numpy_helper.from_array(np.array(value, np.int64))
        return onnx.helper.make_node("Constant", [], [f"{_MASK}/{name}"], f"{_MASK}/{name}", value=values)

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        names = [name if name.startswith("=") else f"{_MASK}/{name}" for name in inputs]
        made = _MASK if output == _MASK else f"{_MASK}/{output}"
        return onnx.helper.make_node(kind, [name.removeprefix("=") for name in names], [made], made, **attributes)

    shapes: dict[str, onnx.NodeProto] = {}
    all_size = size_node(shapes, "attention_mask", 1)
    past_size = size_node(shapes, past, 2)
    return [
        *shapes.values(),
        constant("zero", 0),
        constant("one", 1),
        constant("down", [1]),
        constant("rows", [1, 2]),
        node("Range", ["zero", f"={all_size}", "one"], "columns"),
        node("Range", [f"={past_size}", f"={all_size}", "one"], "positions"),
        node("Unsqueeze", ["positions", "down"], "own"),
        node("LessOrEqual", ["columns", "own"], "before"),
        node("Cast", ["=attention_mask"], "words", to=onnx.TensorProto.BOOL),
        node("Unsqueeze", ["words", "rows"], "no_padding"),
        node("And", ["no_padding", "before"], _MASK),
    ]


def _all_equal(graph: OnnxGraph, masks: list[str]) -> bool:
    """Run a graph as far as these masks; are they all equal, to the last shape, in every case?"""
    import numpy as np
    import onnx
    import onnxruntime

    part = onnx.ModelProto()
    part.CopyFrom(graph.proto)
    nodes = needed(list(graph.nodes), set(masks))
    del part.graph.node[:], part.graph.output[:], part.graph.initializer[:]
    part.graph.node.extend(nodes)
    part.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in masks)
    taken = {name for node in nodes for name in node.input}
    for name in taken & set(graph.weights):
        if graph.weights[name].ndim > 1:
            return False  # no mask is made of weights
        part.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(graph.weights[name]), name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for rows, before, new in _CASES:
        seen = random.integers(0, 2, (rows, before + new))
        seen[0] = 1
        given: dict[str, np.ndarray] = {}
        for value in session.get_inputs():
            if value.name == "attention_mask":
                given[value.name] = seen
            elif value.name.startswith(PAST):
                given[value.name] = np.zeros((rows, value.shape[1], before, value.shape[3]), np.float32)
            else:
                given[value.name] = np.tile(np.arange(before, before + new), (rows, 1))
        found = session.run(masks, given)
        if not all(np.array_equal(found[0], other) for other in found[1:]):
            return False
    return True
