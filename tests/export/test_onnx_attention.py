"""One operator per attention: the same numbers as the trace, with a cache, in batches, behind padding; or the trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from contract.errors import AssayError
from export import onnx_trace
from export.onnx_attention import fuse_attention
from export.onnx_graph import FUSED_OPSET, OPSET, OnnxGraph, sort_nodes, write_graphs
from export.onnx_mask import settle_mask
from export.onnx_source import SourceTensors
from export.onnx_trace import trace
from export.weights import FolderWeights
from tests.export.families import make_model
from tests.said import say_at_the_end
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

CASES = ((1, 0, 7), (1, 9, 1), (3, 0, 5), (3, 6, 1), (2, 4, 3))  # rows, cached positions, new ones


def traced(model: Path, scratch: Path) -> OnnxGraph:
    scratch.mkdir()
    [graph] = trace(model, scratch, SourceTensors(FolderWeights.open(model)))
    return graph


def kinds(graph: OnnxGraph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def session_of(graph: OnnxGraph, folder: Path) -> onnxruntime.InferenceSession:
    folder.mkdir()
    write_graphs(folder, [graph])
    onnx.checker.check_model(str(folder / "model.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def largest_difference(first: OnnxGraph, second: OnnxGraph, folder: Path) -> float:
    """Of logits and cache, over all cases and all positions but padding, on the left of some rows."""
    one, two = session_of(first, folder / "one"), session_of(second, folder / "two")
    random = np.random.default_rng(0)
    largest = 0.0
    for rows, before, new in CASES:
        seen = np.ones((rows, before + new), np.int64)
        for row in range(rows):
            seen[row, :row] = 0
        given = {"attention_mask": seen, "input_ids": random.integers(5, 200, (rows, new))}
        given["position_ids"] = np.maximum(seen.cumsum(axis=1) - 1, 0)[:, before:]
        for value in one.get_inputs():
            if value.name not in given:
                shape = (rows, value.shape[1], before, value.shape[3])
                given[value.name] = random.normal(size=shape).astype(np.float32)
        names = [value.name for value in one.get_outputs()]
        asked = {value.name for value in one.get_inputs()}
        given = {name: values for name, values in given.items() if name in asked}
        for name, old, now in zip(names, one.run(names, given), two.run(names, given), strict=True):
            old, now = np.asarray(old), np.asarray(now)
            assert old.shape == now.shape, name
            shown = seen[:, before:, None] if name == "logits" else seen[:, None, :, None]
            largest = max(largest, float(np.abs((old - now) * shown).max()))
    return largest


@pytest.mark.parametrize("family", ["mistral", "smollm3", "qwen2", "qwen3", "phi3"])
def test_the_same_numbers_come_out_of_one_operator(family: str, tmp_path: Path) -> None:
    graph = traced(make_model(tmp_path / "model", family), tmp_path / "traced")
    before = graph.proto.SerializeToString(deterministic=True)
    fused, count = fuse_attention(graph)
    assert count == kinds(graph).count("Softmax") == kinds(fused).count("Attention") > 0
    assert "Softmax" not in kinds(fused)
    assert {node.input[3] for node in fused.nodes if node.op_type == "Attention"} == {"seen"}
    assert largest_difference(graph, fused, tmp_path) < 1e-4
    assert graph.proto.SerializeToString(deterministic=True) == before
    say_at_the_end(
        f"attention {family}", f"attention in one operator, nodes of {family}: {len(graph.nodes)} → {len(fused.nodes)}"
    )


def test_the_opset_is_the_one_that_has_the_operator(tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    fused, _ = fuse_attention(graph)
    assert [one.proto.opset_import[0].version for one in (graph, fused)] == [OPSET, FUSED_OPSET]


def test_a_grouped_head_is_rotated_and_split_by_the_operator_itself(tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    fused, layers = fuse_attention(graph)
    assert kinds(fused).count("RotaryEmbedding") == 2 * layers
    assert not {"Expand", "Slice", "Neg"} & set(kinds(fused))
    [attributes] = {
        tuple((item.name, item.i) for item in node.attribute if item.name.endswith("heads"))
        for node in fused.nodes
        if node.op_type == "Attention"
    }
    assert dict(attributes) == {"q_num_heads": 4, "kv_num_heads": 2}


def test_another_mask_than_a_causal_one_stays_as_it_was_traced(tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    for node in graph.nodes:
        if node.op_type == "LessOrEqual":
            node.op_type = "Less"  # nobody sees itself
    fused, count = fuse_attention(graph)
    assert count > 0
    assert "seen" not in {name for node in fused.nodes for name in node.input}
    assert largest_difference(graph, fused, tmp_path) < 1e-4


@pytest.mark.parametrize("window", [4, 96])
def test_a_mask_with_a_window_stays_as_it_was_traced(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_trace, "_refuse_untraceable", lambda *_: None)  # which says no before
    graph = traced(make_model(tmp_path / "model", "mistral-window", sliding_window=window), tmp_path / "traced")
    fused, count = fuse_attention(graph)
    assert count > 0
    assert "seen" not in {name for node in fused.nodes for name in node.input}
    assert largest_difference(graph, fused, tmp_path) < 1e-4


def test_a_mask_of_other_inputs_is_left_alone(tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    fused, _ = fuse_attention(graph)
    before = fused.proto.SerializeToString(deterministic=True)
    inputs = fused.proto.graph.input
    inputs.remove(next(item for item in inputs if item.name == "attention_mask"))
    settle_mask(fused)
    assert kinds(fused) == kinds(read(before, fused))


def read(proto: bytes, graph: OnnxGraph) -> OnnxGraph:
    return OnnxGraph(graph.name, onnx.ModelProto.FromString(proto), graph.weights)


def another_axis(graph: OnnxGraph) -> None:
    """Heads are repeated in another order."""
    constants = {node.output[0]: node for node in graph.nodes if node.op_type == "Constant"}
    for node in graph.nodes:
        if node.op_type == "Unsqueeze" and node.input[0].startswith("present."):
            axis = constants[node.input[1]]
            axis.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array([1])))


def another_cache(graph: OnnxGraph) -> None:
    """Keys go on from another layer's."""
    for node in graph.nodes:
        if node.op_type == "Concat" and node.output[0].endswith(".key"):
            node.input[0] = {"past_key_values.0.key": "past_key_values.1.key"}.get(
                node.input[0], "past_key_values.0.key"
            )


def another_bias(graph: OnnxGraph) -> None:
    """What is not seen is merely unlikely."""
    constants = {node.output[0]: node for node in graph.nodes if node.op_type == "Constant"}
    for node in graph.nodes:
        if node.op_type == "Where" and node.input[2] in constants:
            value = constants[node.input[2]].attribute[0].t
            if np.isneginf(onnx.numpy_helper.to_array(value)).all():
                value.CopyFrom(onnx.numpy_helper.from_array(np.array(-5, np.float32)))


@pytest.mark.parametrize("change", [another_axis, another_cache, another_bias])
def test_what_looks_otherwise_stays_as_it_was_traced(change: object, tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    assert callable(change)
    change(graph)
    fused, count = fuse_attention(graph)
    assert count == 0
    assert fused is graph


def rotations(graph: OnnxGraph) -> list[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]:
    """Per rotation the Concat, what makes the second half negative, and the Slices of second and first half."""
    makers = {name: node for node in graph.nodes for name in node.output}
    return [
        (node, makers[node.input[0]], makers[makers[node.input[0]].input[0]], makers[node.input[1]])
        for node in graph.nodes
        if node.op_type == "Concat" and len(node.input) == 2 and "Neg" in node.input[0]
    ]


def negative_last(graph: OnnxGraph) -> None:
    for joined, _, _, _ in rotations(graph):
        joined.input[0], joined.input[1] = joined.input[1], joined.input[0]


def negative_first_half(graph: OnnxGraph) -> None:
    for joined, negative, _, _ in rotations(graph):
        negative.input[0], joined.input[1] = joined.input[1], negative.input[0]


def every_second(graph: OnnxGraph) -> None:
    """Even and odd places instead of halves."""
    values = [("part/zero", 0), ("part/one", 1), ("part/two", 2), ("part/end", 2**62)]
    constants = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array([value])))
        for name, value in values
    ]
    for _, _, second, first in rotations(graph):
        for part, begin in ((second, "part/one"), (first, "part/zero")):
            part.input[1], part.input[2], part.input[4] = begin, "part/end", "part/two"
    graph.set_nodes([*constants, *graph.nodes])


@pytest.mark.parametrize("change", [negative_last, negative_first_half, every_second])
def test_another_rotation_is_not_taken_for_the_operators(change: object, tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    assert callable(change)
    change(graph)
    fused, count = fuse_attention(graph)
    assert count > 0
    assert "RotaryEmbedding" not in kinds(fused)
    assert largest_difference(graph, fused, tmp_path) < 1e-4


def test_layers_that_rotate_at_other_frequencies_keep_their_own(tmp_path: Path) -> None:
    graph = traced(make_llama(tmp_path / "model"), tmp_path / "traced")
    shared = "/model/layers.0/self_attn/Unsqueeze_"  # cosines and sines, which layer 0 spreads for all
    spread = {node.output[0] for node in graph.nodes if node.name in (f"{shared}6", f"{shared}7")}
    nodes: list[onnx.NodeProto] = []
    copied: dict[str, str] = {}
    for node in graph.nodes:
        nodes.append(node)
        frequencies = node.op_type == "Constant" and onnx.numpy_helper.to_array(node.attribute[0].t).ndim == 3
        if frequencies or "/rotary_emb/" in node.name or node.output[0] in spread:
            other = onnx.NodeProto()
            other.CopyFrom(node)
            other.name, copied[node.output[0]] = f"{node.name}_other", f"{node.output[0]}_other"
            other.input[:] = [copied.get(name, name) for name in node.input]
            other.output[:] = [copied[node.output[0]]]
            if frequencies:
                values = onnx.numpy_helper.to_array(node.attribute[0].t) / 3
                other.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32)))
            nodes.append(other)
    for node in nodes:
        if "/layers.1/" in node.name:
            node.input[:] = [copied[name] if name in spread else name for name in node.input]
    graph.set_nodes(nodes)
    fused, count = fuse_attention(graph)
    assert len(spread) == 2
    assert count > 1
    assert kinds(fused).count("RotaryEmbedding") == 2 * count
    assert kinds(fused).count("Cos") == 2
    assert largest_difference(graph, fused, tmp_path) < 1e-4


def test_nodes_in_a_circle_are_an_error(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Neg", [a], [b]) for a, b in (("x", "y"), ("y", "x"))]
    graph = OnnxGraph("model", onnx.ModelProto(), {})
    graph.set_nodes(nodes)
    with pytest.raises(AssayError, match="in a circle"):
        sort_nodes(graph)
