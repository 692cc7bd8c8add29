"""Reads off ONNX graphs whether the key-value cache of one step is the next one's, layer by layer, key by key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from export.onnx_graph import ATTENTION, PAST, PRESENT, OnnxGraph

if TYPE_CHECKING:
    import onnx

_SAME_VALUES = {"Cast", "Identity"}
_REORDERS = _SAME_VALUES | {"Transpose", "Reshape", "Unsqueeze", "Squeeze"}
_MOVES = _REORDERS | {"Expand", "Mul", "Concat"}
_AFTER_SOFTMAX = _SAME_VALUES | {"Where", "Dropout"}
_PRODUCTS = {"MatMul", "MatMulInteger", "MatMulNBits"}
# an Attention node's inputs, and which of them each of its outputs 1 and 2 joins
_PAST_KEY, _PAST_VALUE = 4, 5
_NEW_OF, _PAST_OF = {1: 1, 2: 2}, {1: _PAST_KEY, 2: _PAST_VALUE}
_NO_VALUES = {"Shape", "Size", "DynamicQuantizeLinear"}  # dimensions and scales of a tensor
_LAYER = re.compile(r"\.(\d+)/")
_PROJECTION = re.compile(r"/([qkv])(_proj)?/")  # one of its own; fused ones do not say what they make
_CROSS = re.compile(r"/(EncDecAttention|encoder_attn)/")


def cache_names(layers: int, sides: tuple[str, ...] = ("",)) -> list[str]:
    """What follows past_key_values. and present.: "0.key", or "0.decoder.key" with sides ("decoder.", "encoder.")."""
    return [f"{layer}.{side}{part}" for layer in range(layers) for side in sides for part in ("key", "value")]


def cache_problems(made_by: OnnxGraph, taken_by: OnnxGraph, names: list[str]) -> list[str]:
    """Are the first graph's present.* the second one's past_key_values.*: there, alike, used and made as what they are?

    Args:
        made_by: the graph that makes the cache.
        taken_by: the graph that takes it; the same one for a causal model.
        names: of the cache's tensors, as `cache_names` gives them.
    """
    outputs = {item.name: item for item in made_by.proto.graph.output}
    inputs = {item.name: item for item in taken_by.proto.graph.input}
    grown = {item.name: item for item in taken_by.proto.graph.output}
    maker, taker = _Reader(made_by), _Reader(taken_by)
    problems = [f"{made_by.name}: no output {PRESENT}{name}" for name in names if PRESENT + name not in outputs]
    problems += [f"{taken_by.name}: no input {PAST}{name}" for name in names if PAST + name not in inputs]
    known = {PAST + name for name in names}
    problems += [
        f"{taken_by.name}: unknown cache input {name}" for name in inputs if name.startswith(PAST) and name not in known
    ]
    for name in names:
        if PRESENT + name not in outputs or PAST + name not in inputs:
            continue
        made, taken = _kind(outputs[PRESENT + name]), _kind(inputs[PAST + name])
        if made != taken:
            problems.append(f"{made_by.name} makes {PRESENT}{name} as {made}, {taken_by.name} takes it as {taken}")
        if ".encoder." not in name:
            if PRESENT + name not in grown:
                problems.append(f"{taken_by.name}: no output {PRESENT}{name}")
                continue
            begins = taker.begins_with(PRESENT + name)
            if begins != PAST + name:
                problems.append(f"{taken_by.name}: {PRESENT}{name} goes on from {begins or 'nothing'}")
            problems += taker.misplaced(name)
        problems += taker.misuse(PAST + name, name)
        if made_by is not taken_by:
            problems += maker.misplaced(name)
            problems += maker.misuse(PRESENT + name, name)
    return problems


def _kind(item: onnx.ValueInfoProto) -> str:
    """Dtype and fixed dimensions, as text."""
    import onnx

    tensor = item.type.tensor_type
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else "*" for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(dims)}]"


class _Reader:
    """Follows values through a graph."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._name = graph.name
        self._makers = {name: node for node in graph.nodes for name in node.output if name}
        self._takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in node.input:
                self._takers.setdefault(name, []).append(node)

    def begins_with(self, name: str) -> str | None:
        """The tensor in front of what is appended to make `name`."""
        name = self._origin(name)
        node = self._makers.get(name)
        if node is not None and node.op_type == ATTENTION:
            at = _PAST_OF.get(list(node.output).index(name))
            return self._origin(node.input[at]) if at is not None and at < len(node.input) else None
        return self._origin(node.input[0]) if node is not None and node.op_type == "Concat" else None

    def _origin(self, name: str) -> str:
        while name in self._makers and self._makers[name].op_type in _SAME_VALUES:
            name = self._makers[name].input[0]
        return name

    def misplaced(self, name: str) -> Iterator[str]:
        """Is what becomes present.NAME made by that layer's projection for it? By the names of projections."""
        found = self._foreign(PRESENT + name, name, name.rpartition(".")[2][0])
        if found is None:
            yield f"{self._name}: no layer makes {PRESENT}{name}"
        for by in found or ():
            yield f"{self._name}: {PRESENT}{name} is made by {by}"

    def _foreign(self, tensor: str, name: str, kind: str) -> list[str] | None:
        """The projections before a tensor that are not of `kind`, or not of the attention whose cache has that name.

        Returns:
            Their names, or None where there are no projections of any layer.
        """
        layer, cross = name.split(".")[0], ".encoder." in name
        made_in = [(node, at[1]) for node in self._projections(tensor) if (at := _LAYER.search(node.name))]
        foreign = []
        for node, number in made_in:
            own = _PROJECTION.search(node.name)
            if number != layer or bool(_CROSS.search(node.name)) != cross or (own and own[1] != kind):
                foreign.append(node.name.strip("/"))
        return foreign if made_in else None

    def _projections(self, tensor: str) -> Iterator[onnx.NodeProto]:
        """The products nearest before a tensor."""
        waiting, seen = [tensor], {tensor}
        while waiting:
            at = waiting.pop()
            node = self._makers.get(at)
            if node is None or node.op_type in _NO_VALUES:
                continue
            if node.op_type in _PRODUCTS:
                yield node
                continue
            taken = node.input
            if node.op_type == ATTENTION and (part := list(node.output).index(at)) in _NEW_OF:
                taken = node.input[_NEW_OF[part] : _NEW_OF[part] + 1]
            new = [name for name in taken if name not in seen]
            seen.update(new)
            waiting += new

    def misuse(self, tensor: str, name: str) -> Iterator[str]:
        """Is a key multiplied with that layer's queries and a value with weights, in the attention of its own layer?"""
        products = list(self._products(self._before_moves(tensor)))
        if not products:
            yield f"{self._name}: nothing uses {tensor}"
        layer, part = name.split(".")[0], name.rpartition(".")[2]
        for node in products:
            if node.op_type == ATTENTION:
                used = {_PAST_KEY: "key", _PAST_VALUE: "value"}.get(list(node.input).index(tensor), "mask or query")
            else:
                used = "value" if self._is_behind_softmax(node.input[0]) else "key"
            if used != part:
                yield f"{self._name}: {tensor} is used as a {used}"
            if part == "key":
                for by in self._foreign(node.input[0], name, "q") or ():
                    yield f"{self._name}: {tensor} meets what {by} makes"
            at = _LAYER.search(node.name)
            if at and at[1] != layer:
                yield f"{self._name}: {tensor} is used in layer {at[1]}"

    def _before_moves(self, name: str) -> str:
        """Where the values come from that `name` has, in whatever order."""
        while name in self._makers and self._makers[name].op_type in _REORDERS:
            name = self._makers[name].input[0]
        return name

    def _products(self, tensor: str) -> Iterator[onnx.NodeProto]:
        waiting, seen = [tensor], {tensor}
        while waiting:
            name = waiting.pop()
            for node in self._takers.get(name, []):
                if (node.op_type == "MatMul" and node.input[1] == name) or (
                    node.op_type == ATTENTION and name == tensor
                ):
                    yield node
                elif (
                    node.op_type in _MOVES
                    and node.output[0] not in seen
                    and (node.input[0] == name or node.op_type in ("Concat", "Mul"))
                ):
                    seen.add(node.output[0])
                    waiting.append(node.output[0])

    def _is_behind_softmax(self, name: str) -> bool:
        node = self._makers.get(name)
        if node is None:
            return False
        if node.op_type == "Softmax":
            return True
        return node.op_type in _AFTER_SOFTMAX and any(map(self._is_behind_softmax, node.input))
