"""Dimensions said once: the same numbers come out, for any batch and length, of far fewer nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.onnx_dimensions import settle_dimensions
from export.onnx_graph import read_graph, write_graphs
from tests.said import say_at_the_end
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

SIZES = [
    {"batch_size": 1, "sequence_length": 1, "decoder_sequence_length": 1, "past": 9, "encoder_sequence_length": 7},
    {"batch_size": 3, "sequence_length": 5, "decoder_sequence_length": 1, "past": 0, "encoder_sequence_length": 11},
]


def feeds(session: Any, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random inputs of the shapes the graph names, nothing masked."""
    random = np.random.default_rng(0)

    def size(name: int | str) -> int:
        if isinstance(name, int):
            return name
        return sum(sizes["past" if part.startswith("past") else part] for part in name.split(" + "))

    found = {}
    for value in session.get_inputs():
        shape = [size(name) for name in value.shape]
        whole = np.ones(shape, np.int64) if "mask" in value.name else random.integers(5, 300, shape)
        found[value.name] = random.normal(size=shape).astype(np.float32) if "float" in value.type else whole
    return found


def session_of(path: Path) -> tuple[Any, int]:
    """A session, and the number of nodes that onnxruntime runs."""
    import onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path.parent / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, len(onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node)


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_the_same_numbers_come_out_of_fewer_nodes(kind: str, tmp_path: Path) -> None:
    makers: dict[str, Any] = {"llama": make_llama, "t5": make_t5, "bart": make_bart}
    folder = makers[kind](tmp_path / "model", dtype="float32")
    out = export_folder(folder, tmp_path / "onnx", seq2seq=kind != "llama")
    counts = []
    for name in sorted(path.stem for path in out.glob("*.onnx")):
        graph = read_graph(out, name)
        settle_dimensions(graph)
        (settled := tmp_path / f"{name}-settled").mkdir()
        write_graphs(settled, [graph])
        before, nodes_before = session_of(out / f"{name}.onnx")
        after, nodes_after = session_of(settled / f"{name}.onnx")
        for sizes in SIZES:
            inputs = feeds(before, sizes)
            for old, new in zip(before.run(None, inputs), after.run(None, inputs), strict=True):
                np.testing.assert_array_equal(old, new)
        assert nodes_after < nodes_before
        counts.append(f"{name} {nodes_before} → {nodes_after}")
    say_at_the_end(f"dimensions {kind}", f"dimensions said once, nodes of {kind}: {', '.join(counts)}")


def test_the_same_graph_is_settled_the_same_way(tmp_path: Path) -> None:
    out = export_folder(make_t5(tmp_path / "model"), tmp_path / "onnx", seq2seq=True)
    settled = []
    for _ in range(2):
        graph = read_graph(out, "decoder_model")
        settle_dimensions(graph)
        settled.append(graph.proto.SerializeToString(deterministic=True))
    settle_dimensions(graph)
    assert settled == [graph.proto.SerializeToString(deterministic=True)] * 2
