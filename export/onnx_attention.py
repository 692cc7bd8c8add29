"""Puts one Attention operator where a causal trace has some seventy nodes, and RotaryEmbedding where it has ten.

A trace spells attention out: keys of grouped heads are copied, the cache is joined, shapes are asked for. The standard
has operators for all of it since opset 23. They compute the same sums, and onnxruntime runs each as one kernel. What
does not look exactly as expected stays as it was traced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from export.onnx_dimensions import constants_of, needed, shapes_of
from export.onnx_graph import ATTENTION, FUSED_OPSET, PAST, PRESENT, OnnxGraph, sort_nodes
from export.onnx_mask import settle_mask

if TYPE_CHECKING:
    import numpy as np
    import onnx

_HEADS_FIRST, _TURNED = [0, 2, 1, 3], [0, 1, 3, 2]
# later than in a trace, and no different but for the types they take
_SAME = {
    *("Cast", "Constant", "ConstantOfShape", "Cos", "Equal", "Flatten", "Identity", "IsNaN", "Reshape", "Shape"),
    *("Sin", "Squeeze", "Transpose", "Unsqueeze"),
}

_Angles = tuple[str, float]  # the tensor [rows, positions, size / 2], and what its cosines or sines are multiplied with


@dataclass(frozen=True)
class _Core:
    """The tensors of one attention: [rows, heads, positions, size], or with `heads` [rows, positions, heads × size]."""

    name: str
    query: str
    key: str  # of the new positions alone
    value: str
    mask: str  # bool, True where a position is seen
    past: tuple[str, str]
    present: tuple[str, str]
    scale: float
    mixed: str
    heads: tuple[int, int] | None = None  # of queries, of keys


def fuse_attention(graph: OnnxGraph) -> tuple[OnnxGraph, int]:
    """Replace every attention over a cache by the standard's operator.

    Args:
        graph: of a causal model, as traced, in float32; stays as it is.

    Returns:
        The graph, of `FUSED_OPSET` where anything was replaced, and how many attentions were.
    """
    made = graph.copy()
    fuser = _Fuser(made)
    cores = [core for node in made.nodes if node.op_type == "Softmax" and (core := fuser.core(node)) is not None]
    if not cores or not _raise_opset(made):
        return graph, 0
    fuser.replace(cores)
    settle_mask(made)
    return made, len(cores)


def _raise_opset(graph: OnnxGraph) -> bool:
    """Let the operators be those of `FUSED_OPSET`, if all of them mean the same there."""
    import onnx

    [entry] = [entry for entry in graph.proto.opset_import if not entry.domain]
    kinds = {node.op_type for node in graph.nodes if not node.domain}
    versions = (entry.version, FUSED_OPSET)
    newer = {kind for kind in kinds if len({onnx.defs.get_schema(kind, at).since_version for at in versions}) > 1}
    if newer <= _SAME:
        entry.version = FUSED_OPSET
        graph.proto.ir_version = onnx.helper.find_min_ir_version_for([entry])
    return newer <= _SAME


class _Fuser:
    """Recognizes attentions by what they are made of, and writes them anew."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.nodes for name in node.output}
        self._takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in node.input:
                self._takers.setdefault(name, []).append(node)
        self._constants = constants_of(graph)
        self._shapes = shapes_of(graph)
        self._made: dict[str, onnx.NodeProto] = {}  # by what it makes

    def core(self, softmax: onnx.NodeProto) -> _Core | None:
        """The attention around a softmax, or None where it is another than causal models with a cache have."""
        added = self._maker(softmax.input[0], "Add")
        mixed = self._mixed_by(softmax.output[0])
        if added is None or mixed is None or _attribute(softmax, "axis") not in (None, -1, 3):
            return None
        for product, bias in (added.input, reversed(added.input)):
            scores, mask = self._maker(product, "MatMul"), self._mask(bias)
            if scores is None or mask is None:
                continue
            query, query_scale = self._unscaled(scores.input[0])
            turned, key_scale = self._unscaled(scores.input[1])
            keys = self._maker(turned, "Transpose")
            if keys is None or _attribute(keys, "perm") != _TURNED:
                continue
            key, value = self._cached(keys.input[0], "key"), self._cached(mixed.input[1], "value")
            if key is None or value is None or key[1].rpartition(".")[0] != value[1].rpartition(".")[0]:
                continue
            name = f"{softmax.name.rpartition('/')[0]}/Attention"
            past, present = (key[1], value[1]), (key[2], value[2])
            scale = query_scale * key_scale
            return _Core(name, query, key[0], value[0], mask, past, present, scale, mixed.output[0])
        return None

    def _maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _mixed_by(self, probabilities: str) -> onnx.NodeProto | None:
        """The product of a softmax with values; in between, rows that are not numbers may become zeros."""
        takers = self._takers.get(probabilities, [])
        for node in takers:
            if node.op_type == "Where" and self._maker(node.input[0], "IsNaN") and self._number(node.input[1]) == 0:
                return self._mixed_by(node.output[0])
        found = [node for node in takers if node.op_type == "MatMul" and node.input[0] == probabilities]
        return found[0] if len(found) == len(takers) == 1 else None

    def _mask(self, name: str) -> str | None:
        """The bool tensor behind a bias of 0 and -inf."""
        chosen = self._maker(name, "Where")
        if chosen is None or self._number(chosen.input[1]) != 0 or self._number(chosen.input[2]) != -float("inf"):
            return None
        return chosen.input[0]

    def _number(self, name: str) -> float | None:
        values = self._constants.get(name)
        return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None

    def _unscaled(self, name: str) -> tuple[str, float]:
        """What is multiplied with a number, and that number."""
        node = self._maker(name, "Mul")
        for values, factor in (node.input, reversed(node.input)) if node is not None else ():
            if (number := self._number(factor)) is not None:
                return values, number
        return name, 1.0

    def _cached(self, name: str, part: str) -> tuple[str, str, str] | None:
        """(new positions, past, present) of a tensor that joins the cache and them, copied for every query head."""
        if (reshaped := self._maker(name, "Reshape")) is not None:
            spread = self._maker(reshaped.input[0], "Expand")
            grouped = self._maker(spread.input[0], "Unsqueeze") if spread is not None else None
            if grouped is None or self._integers(grouped.input[1]) != [2]:
                return None
            name = grouped.input[0]
        joined = self._maker(name, "Concat")
        if joined is None or len(joined.input) != 2 or _attribute(joined, "axis") not in (2, -2):
            return None
        past, new = joined.input
        belongs = past.startswith(PAST) and past.endswith(part) and name == PRESENT + past.removeprefix(PAST)
        return (new, past, name) if belongs else None

    def _integers(self, name: str) -> list[int] | None:
        """The numbers of a constant, or of one divided by another, as half a head's size is."""
        if (values := self._constants.get(name)) is not None:
            return [int(value) for value in values.reshape(-1)]
        node = self._makers.get(name)
        if node is not None and node.op_type in ("Cast", "Unsqueeze"):
            return self._integers(node.input[0])
        if node is None or node.op_type != "Div":
            return None
        match [self._integers(part) for part in node.input]:
            case [[whole], [parts]] if parts and whole % parts == 0:
                return [whole // parts]
        return None

    def replace(self, cores: list[_Core]) -> None:
        """Write every core as one node, and drop what nothing needs any more."""
        import onnx

        for core in cores:
            core = self._flat(core) or replace(core, query=self._rotated(core.query), key=self._rotated(core.key))
            heads: dict[str, Any] = {}
            if core.heads is not None:
                heads["q_num_heads"], heads["kv_num_heads"] = core.heads
            inputs = [core.query, core.key, core.value, core.mask, *core.past]
            self._made[core.mixed] = onnx.helper.make_node(
                ATTENTION, inputs, [core.mixed, *core.present], core.name, scale=core.scale, **heads
            )
        made = {name for node in self._made.values() for name in node.output}
        kept = [node for node in self._graph.nodes if made.isdisjoint(node.output)]
        outputs = {output.name for output in self._graph.proto.graph.output}
        self._graph.set_nodes([*kept, *self._made.values()])
        sort_nodes(self._graph)
        self._graph.set_nodes(needed(list(self._graph.nodes), outputs))

    def _flat(self, core: _Core) -> _Core | None:
        """The same on tensors that are not split into heads, which saves turning them; None where they are not so."""
        split = [self._unsplit(name) for name in (core.query, core.key, core.value)]
        joined = [
            reshaped.output[0]
            for turned in self._takers.get(core.mixed, [])
            if turned.op_type == "Transpose" and _attribute(turned, "perm") == _HEADS_FIRST
            for reshaped in self._takers.get(turned.output[0], [])
            if reshaped.op_type == "Reshape" and len(self._shapes.get(reshaped.output[0], ())) == 3
        ]
        size = self._shapes[core.past[0]][3]
        if None in split or len(joined) != 1 or not isinstance(size, int):
            return None
        widths = [self._shapes[name][2] for name, _ in filter(None, split)]
        heads = [width // size for width in widths if isinstance(width, int) and width % size == 0]
        if len(heads) != 3 or heads[1:] != [self._shapes[core.past[0]][1]] * 2:
            return None
        query, key, value = (
            self._rotated(turned, flat, count) if turned else flat
            for (flat, turned), count in zip(filter(None, split), heads, strict=True)
        )
        return replace(core, query=query, key=key, value=value, mixed=joined[0], heads=(heads[0], heads[1]))

    def _unsplit(self, name: str) -> tuple[str, str] | None:
        """(the tensor [rows, positions, heads × size] behind `name`, `name` if it is rotated after the split or "")."""
        rotated = self._rotation(name)
        turned = self._maker(rotated[0] if rotated else name, "Transpose")
        reshaped = self._maker(turned.input[0], "Reshape") if turned is not None else None
        if turned is None or reshaped is None or _attribute(turned, "perm") != _HEADS_FIRST:
            return None
        flat = reshaped.input[0]
        return (flat, name if rotated else "") if len(self._shapes.get(flat, ())) == 3 else None

    def _rotation(self, name: str) -> tuple[str, _Angles, _Angles] | None:
        """(x, of cosines, of sines) where `name` is x·cos + turned(x)·sin.

        `turned` is the second half, negative, and then the first (Su et al. 2021, as transformers' Llama has it).
        """
        added = self._maker(name, "Add")
        plain, across = (self._maker(part, "Mul") for part in added.input) if added is not None else (None, None)
        if plain is None or across is None:
            return None
        turned = self._maker(across.input[0], "Concat")
        if turned is None or len(turned.input) != 2:
            return None
        minus, first = self._maker(turned.input[0], "Neg"), self._maker(turned.input[1], "Slice")
        second = self._maker(minus.input[0], "Slice") if minus is not None else None
        source = plain.input[0]
        if first is None or second is None or not first.input[0] == second.input[0] == source:
            return None
        size = self._shapes.get(source, [None])[-1]
        if not isinstance(size, int) or size % 2 or _attribute(turned, "axis") not in (3, -1):
            return None
        if self._cut(first, size) != (0, size // 2) or self._cut(second, size) != (size // 2, size):
            return None
        cosines, sines = self._angles(plain.input[1], "Cos"), self._angles(across.input[1], "Sin")
        return None if cosines is None or sines is None else (source, cosines, sines)

    def _cut(self, part: onnx.NodeProto, size: int) -> tuple[int, int] | None:
        """Where a Slice of [rows, heads, positions, size] along the last dimension begins and ends."""
        begin, end, axis, *steps = (self._integers(name) for name in part.input[1:])
        if not begin or not end or axis not in ([3], [-1]) or steps not in ([], [[1]]):
            return None
        return begin[0], min(end[0], size)

    def _angles(self, name: str, kind: str) -> _Angles | None:
        """(angles, factor) where `name` is factor·kind(angles), the angles written twice and spread over the heads."""
        spread = self._maker(name, "Unsqueeze")
        if spread is None or self._integers(spread.input[1]) != [1]:
            return None
        inner, factor = self._unscaled(self._uncast(spread.input[0]))
        found = self._maker(self._uncast(inner), kind)
        doubled = self._maker(found.input[0], "Concat") if found is not None else None
        if doubled is None or len(doubled.input) != 2 or doubled.input[0] != doubled.input[1]:
            return None
        return doubled.input[0], factor

    def _uncast(self, name: str) -> str:
        while (node := self._maker(name, "Cast")) is not None:
            name = node.input[0]
        return name

    def _rotated(self, name: str, flat: str = "", heads: int = 0) -> str:
        """The rotated tensor, made by one operator; `name` itself where it is not rotated.

        Args:
            name: [rows, heads, positions, size].
            flat: instead of what is rotated there, [rows, positions, heads × size].
            heads: how many that has.
        """
        rotation = self._rotation(name)
        if rotation is None:
            return name
        source, cosines, sines = rotation
        inputs = [flat or source, self._half(cosines, "Cos"), self._half(sines, "Sin")]
        return self._make("RotaryEmbedding", inputs, f"{name}_rotated", **({"num_heads": heads} if flat else {}))

    def _half(self, found: _Angles, kind: str) -> str:
        """Cosines or sines, [rows, positions, size / 2]: of the angles once."""
        import numpy as np

        angles, factor = found
        made = self._make(kind, [self._plain_angles(angles)], f"{angles}_{kind.lower()}")
        if factor == 1:
            return made
        return self._make(
            "Mul", [made, self._constant(f"{made}_factor", np.array(factor, np.float32))], f"{made}_scaled"
        )

    def _plain_angles(self, name: str) -> str:
        """Positions times frequencies, where the trace has a product of matrices with one column and one row."""
        import numpy as np

        turned = self._maker(name, "Transpose")
        product = self._maker(turned.input[0], "MatMul") if turned is not None else None
        if product is None:
            return name
        left, right = (self._uncast(part) for part in product.input)
        spread, column = self._maker(left, "Expand"), self._maker(right, "Unsqueeze")
        frequencies = self._constants.get(self._uncast(spread.input[0])) if spread is not None else None
        if frequencies is None or frequencies.ndim != 3 or column is None or column.input[0] != "position_ids":
            return name
        import onnx

        column_of = self._make("Unsqueeze", ["position_ids", self._constant("rope/last", np.array([2]))], "rope/column")
        positions = self._make("Cast", [column_of], "rope/positions", to=onnx.TensorProto.FLOAT)
        row = self._constant(f"{name}_frequencies", frequencies.reshape(1, 1, -1))  # layers may differ in them
        return self._make("Mul", [positions, row], f"{name}_plain")

    def _make(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node of one output, made once; its name is the output's."""
        import onnx

        self._made.setdefault(output, onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _constant(self, name: str, values: np.ndarray) -> str:
        import onnx

        return self._make("Constant", [], name, value=onnx.numpy_helper.from_array(values))


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    import onnx

    found = [onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name]
    return found[0] if found else None
