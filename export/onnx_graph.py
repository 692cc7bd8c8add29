"""ONNX graphs in memory and on disk: the structure as a proto without values, the weights as arrays beside it.

Weights lie in external data files, NAME.onnx_data, mapped and not read, so that a model of any size is handled a tensor
at a time. Graphs of one folder share them: a weight that several sub-models need is stored once, with the first.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError

if TYPE_CHECKING:
    import numpy as np
    import onnx

CAUSAL = ("model",)
SEQ2SEQ = ("encoder_model", "decoder_model", "decoder_with_past_model")  # in Optimum's names
OPSET = 18  # of what is traced
FUSED_OPSET = 23  # the first with Attention and RotaryEmbedding
PAST, PRESENT = "past_key_values.", "present."  # what names of cache inputs and outputs begin with
ATTENTION = "Attention"
_EXTERNAL_BYTES = 1024  # smaller weights stay in the graph
_LARGE_BYTES = 1 << 20
_PAGE = 1 << 16  # large weights begin on one, so that any system can map them
_LINE = 64


@dataclass
class OnnxGraph:
    """One sub-model. The proto's initializers have name, dtype and dims; their values are in `weights`."""

    name: str
    proto: onnx.ModelProto
    weights: dict[str, np.ndarray]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes, in order."""
        return self.proto.graph.node

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Replace all weights, in the order given; the proto's initializers become theirs."""
        import onnx

        self.weights = weights
        del self.proto.graph.initializer[:]
        for name, values in weights.items():
            dtype = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            self.proto.graph.initializer.append(onnx.TensorProto(name=name, data_type=dtype, dims=values.shape))

    def set_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Replace all nodes."""
        nodes = list(nodes)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(nodes)

    def copy(self) -> OnnxGraph:
        """Another graph with the same weights (the arrays are shared)."""
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return OnnxGraph(self.name, proto, dict(self.weights))


def read_graph(folder: Path, name: str) -> OnnxGraph:
    """Read NAME.onnx and map its weights.

    Raises:
        AssayError: it is not an ONNX file, or its weights lie outside the folder or are cut short.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = folder / f"{name}.onnx"
    try:
        proto = onnx.load(str(path), load_external_data=False)
        weights = {tensor.name: _values(tensor, folder) for tensor in proto.graph.initializer}
    except (OSError, DecodeError, ValueError, KeyError, TypeError) as error:
        raise AssayError(
            "an ONNX graph cannot be read", where=str(path), got=f"{type(error).__name__}: {str(error)[:300]}"
        ) from None
    graph = OnnxGraph(name, proto, {})
    graph.set_weights(weights)
    return graph


def _values(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    import numpy as np
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor)
    info = {entry.key: entry.value for entry in tensor.external_data}
    if Path(info["location"]).name != info["location"]:
        raise ValueError(f"{tensor.name} lies in {info['location']}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = math.prod(tensor.dims)
    if int(info.get("length", count * dtype.itemsize)) != count * dtype.itemsize:
        raise ValueError(f"{tensor.name} has {info['length']} bytes for {list(tensor.dims)} of {dtype}")
    offset = int(info.get("offset", 0))
    return np.memmap(folder / info["location"], dtype, "r", offset, tuple(tensor.dims))


def write_graphs(folder: Path, graphs: Sequence[OnnxGraph]) -> None:
    """Write every graph as NAME.onnx, and its weights that no graph before it has as NAME.onnx_data.

    The same graphs give the same bytes.
    """
    import numpy as np
    import onnx

    stored: dict[tuple[str, str], tuple[str, int]] = {}
    for graph in graphs:
        proto = onnx.ModelProto()
        proto.CopyFrom(graph.proto)
        location = f"{graph.name}.onnx_data"
        with (folder / location).open("wb") as file:
            for tensor in proto.graph.initializer:
                values = np.ascontiguousarray(graph.weights[tensor.name])
                data = values.reshape(-1).view(np.uint8)
                if data.size < _EXTERNAL_BYTES:
                    tensor.raw_data = data.tobytes()
                    continue
                key = (str(values.dtype), hashlib.sha256(data.data).hexdigest())
                if key not in stored:
                    unit = _PAGE if data.size >= _LARGE_BYTES else _LINE
                    file.seek(-(-file.tell() // unit) * unit)
                    stored[key] = (location, file.tell())
                    file.write(data.data)
                where, offset = stored[key]
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for name, value in (("location", where), ("offset", offset), ("length", data.size)):
                    tensor.external_data.add(key=name, value=str(value))
            empty = file.tell() == 0
        if empty:
            (folder / location).unlink()
        (folder / f"{graph.name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))


def opset_of(graph: OnnxGraph) -> int:
    """Of which opset its operators must be: as traced, or the one that has attention in one operator."""
    return FUSED_OPSET if any(node.op_type == ATTENTION for node in graph.nodes) else OPSET


def sort_nodes(graph: OnnxGraph) -> None:
    """Put the nodes into an order to run in, as near to the present one as can be.

    Raises:
        AssayError: some take from each other in a circle.
    """
    nodes = list(graph.nodes)
    made_by = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    needs = [{made_by[name] for name in node.input if name in made_by} for node in nodes]
    takers: dict[int, list[int]] = {}
    for number, needed in enumerate(needs):
        for other in needed:
            takers.setdefault(other, []).append(number)
    waiting = [len(needed) for needed in needs]
    ready = [number for number, count in enumerate(waiting) if count == 0]
    done: list[onnx.NodeProto] = []
    while ready:
        number = heapq.heappop(ready)
        done.append(nodes[number])
        for taker in takers.get(number, ()):
            waiting[taker] -= 1
            if waiting[taker] == 0:
                heapq.heappush(ready, taker)
    if len(done) != len(nodes):
        raise AssayError("a graph's nodes take from each other in a circle", where=graph.name)
    graph.set_nodes(done)


def share_transposed(graph: OnnxGraph) -> None:
    """Store a matrix once where the graph has it both as it is and transposed: a head tied to the embeddings.

    onnxruntime turns it while it loads.
    """
    import onnx

    turned = [name for name in graph.weights if name.endswith(".T") and name.removesuffix(".T") in graph.weights]
    same = [name for name in turned if graph.weights[name].dtype == graph.weights[name.removesuffix(".T")].dtype]
    turns = [
        onnx.helper.make_node("Transpose", [name.removesuffix(".T")], [name], name=f"{name}/Transpose", perm=[1, 0])
        for name in same
    ]
    graph.set_nodes([*turns, *graph.nodes])
    graph.set_weights({name: values for name, values in graph.weights.items() if name not in same})


def facts(folder: Path, graphs: Sequence[OnnxGraph], values: int) -> dict[str, Any]:
    """What the manifest says of an ONNX folder: per sub-model its operators, weights and bytes; and bits per weight.

    Args:
        folder: where the graphs were written.
        graphs: in the order they were written in.
        values: of the model they were made from, tied ones counted once.
    """
    submodels, weight_bytes = {}, 0
    for graph in graphs:
        kinds = Counter(str(array.dtype) for array in graph.weights.values())
        operators = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.nodes)
        data = folder / f"{graph.name}.onnx_data"
        data_bytes = data.stat().st_size if data.exists() else 0
        submodels[graph.name] = {
            "operators": dict(sorted(operators.items())),
            "initializers": dict(sorted(kinds.items())),
            "graph_bytes": (folder / f"{graph.name}.onnx").stat().st_size,
            "data_bytes": data_bytes,
        }
        weight_bytes += data_bytes + sum(a.nbytes for a in graph.weights.values() if a.nbytes < _EXTERNAL_BYTES)
    return {
        "submodels": submodels,
        "opset": opset_of(graphs[-1]),
        "bits_per_weight": round(weight_bytes * 8 / values, 4),
    }
