"""Puts ONNX's own Loop around a decoder's graph: a token is fed, then the likeliest one behind it, and so on.

Written in protobuf's wire format, by the field numbers of onnx.proto; the `onnx` package is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtimes.wire import bytes_field, fields, number_field

IDS, POSITIONS, SEEN, LOGITS = "input_ids", "position_ids", "attention_mask", "logits"
STEPS, ENDS, LIVE, ONES, TOKENS = "loop/steps", "loop/ends", "loop/live", "loop/ones", "loop/tokens"
BEFORE = "loop/before"  # stands where the logits go, as long as there are none

_FLOAT, _INT64, _BOOL = 1, 7, 9  # TensorProto.DataType
_Values = dict[str, bytes]  # names and types, as TypeProto


def outer(name: str) -> str:
    """What the Loop calls the first value of an input, and the last of an output, that change from token to token."""
    return f"loop/first_or_last/{name}"


def looped(model: bytes, cache: Mapping[str, str]) -> bytes:
    """A model that does what `model` does, token for token, until it is to stop.

    It stops once the likeliest token of a live row is an end, or the likeliest is not finite or a logit not a number.
    Of its inputs, IDS, POSITIONS, SEEN and the cache are called `outer`, and those that stay the same as before. There
    are more: STEPS, int64 [], how many tokens to feed at most; ENDS, int64 [any]; LIVE, bool [rows, 1]; ONES, int64
    [rows, 1]; and `outer(BEFORE)`, float32 [any, any, any], of which nothing is used: the logits are carried from token
    to token like the cache, so that only the last come out. Its outputs are TOKENS, int64 [tokens fed, rows, 1], the
    likeliest behind each of those fed, and `outer` of LOGITS and of the cache's.

    Args:
        model: whose LOGITS are float32, of opset 13 or newer; its weights may lie in other files.
        cache: inputs that hold what the run before has put out, and those outputs.

    Raises:
        ValueError: it is no ONNX model, has an input or output without a type, or names that the loop needs for itself.
    """
    if b"loop/" in model:  # onnxruntime lets an input of a body hide a weight of the same name, and says nothing
        raise ValueError("a name begins as the loop's own do")
    [graph] = [(start, end) for number, start, end in fields(model, 0, len(model)) if number == 7]
    parts: dict[int, list[bytes]] = {}
    for number, start, end in fields(model, *graph):
        if end >= 0:
            parts.setdefault(number, []).append(model[start:end])
    inputs, outputs = (dict(map(_named, parts.get(number, []))) for number in (11, 12))  # GraphProto.input, output
    carried = {IDS: "loop/next"}
    carried |= {name: f"loop/next_{name}" for name in (POSITIONS, SEEN) if name in inputs}
    carried |= {**cache, BEFORE: LOGITS}
    inputs[BEFORE] = _tensor(_FLOAT, 3)
    body = [
        *(bytes_field(1, node) for node in [*parts.get(1, []), *_next_token(carried)]),
        bytes_field(2, "token"),
        *_values(11, {"loop/number": _tensor(_INT64, 0), "loop/going": _tensor(_BOOL, 0)}),
        *_values(11, {name: inputs[name] for name in carried}),
        *_values(12, {"loop/go": _tensor(_BOOL, 0)}),
        *_values(12, {made: _tensor(_element(inputs[name])) for name, made in carried.items()}),
        *_values(12, {"loop/token": _tensor(_INT64)}),
    ]
    last = {outer(made): outputs[made] for made in [*cache.values(), LOGITS]}
    results = [outer(made) if outer(made) in last else f"{outer(made)}/unused" for made in carried.values()]
    loop = _node("Loop", [STEPS, "", *map(outer, carried)], [*results, TOKENS], body=b"".join(body))
    fixed = {name: kind for name, kind in inputs.items() if name not in carried}
    fixed |= {STEPS: _tensor(_INT64, 0), ENDS: _tensor(_INT64, 1), LIVE: _tensor(_BOOL, 2), ONES: _tensor(_INT64, 2)}
    main = [
        bytes_field(1, loop),
        bytes_field(2, "loop"),
        *(bytes_field(number, tensor) for number in (5, 15) for tensor in parts.get(number, [])),  # weights
        bytes_field(5, _number("loop/one", _INT64, (1).to_bytes(8, "little"))),
        bytes_field(5, _number("loop/zero", _FLOAT, bytes(4))),
        *_values(11, fixed | {outer(name): inputs[name] for name in carried}),
        *_values(12, last | {TOKENS: _tensor(_INT64, 3)}),
    ]
    return b"".join([*_beside(model), bytes_field(7, *main)])


def _beside(model: bytes) -> list[bytes]:
    """A model's version, opsets and functions."""
    kept = []
    for number, start, end in fields(model, 0, len(model)):
        if number == 1:  # ModelProto.ir_version
            kept.append(number_field(number, start))
        elif number in (8, 25):  # opset_import, functions
            kept.append(bytes_field(number, model[start:end]))
    return kept


def _next_token(carried: Mapping[str, str]) -> list[bytes]:
    """What comes behind the logits: the likeliest token, shall it be fed, and where would it stand."""
    nodes = [
        _node("ArgMax", [LOGITS], [carried[IDS]], axis=2, keepdims=0),
        _node("Identity", [carried[IDS]], ["loop/token"]),
        _node("Equal", [carried[IDS], ENDS], ["loop/hits"]),
        _node("And", ["loop/hits", LIVE], ["loop/over"]),
        _node("Cast", ["loop/over"], ["loop/overs"], to=_FLOAT),
        _node("ReduceSum", ["loop/overs"], ["loop/count"], keepdims=0),
        _node("ReduceLogSumExp", [LOGITS], ["loop/sum"], keepdims=0),  # finite if the largest is, and all are numbers
        _node("Sub", ["loop/sum", "loop/sum"], ["loop/nothing"]),  # but not a number where that is not so
        _node("Add", ["loop/count", "loop/nothing"], ["loop/reasons"]),
        _node("Equal", ["loop/reasons", "loop/zero"], ["loop/go"]),
    ]
    if POSITIONS in carried:
        nodes.append(_node("Add", [POSITIONS, "loop/one"], [carried[POSITIONS]]))
    if SEEN in carried:
        nodes.append(_node("Concat", [SEEN, ONES], [carried[SEEN]], axis=1))
    return nodes


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], body: bytes = b"", **numbers: int) -> bytes:
    """NodeProto."""
    attributes = [
        bytes_field(5, bytes_field(1, name), number_field(3, value), number_field(20, 2))  # AttributeProto, INT
        for name, value in numbers.items()
    ]
    if body:
        attributes.append(bytes_field(5, bytes_field(1, "body"), bytes_field(6, body), number_field(20, 5)))  # GRAPH
    named = [*(bytes_field(1, name) for name in inputs), *(bytes_field(2, name) for name in outputs)]
    return b"".join([*named, bytes_field(3, f"loop/{kind}/{outputs[0]}"), bytes_field(4, kind), *attributes])


def _named(value: bytes) -> tuple[str, bytes]:
    """The name and the type of a ValueInfoProto."""
    found = {number: value[start:end] for number, start, end in fields(value, 0, len(value)) if number in (1, 2)}
    if len(found) < 2:
        raise ValueError("an input or output has no name or no type")
    return found[1].decode(), found[2]


def _values(number: int, named: _Values) -> list[bytes]:
    """GraphProto's inputs (11) or outputs (12)."""
    return [bytes_field(number, bytes_field(1, name), bytes_field(2, kind)) for name, kind in named.items()]


def _tensor(element: int, dimensions: int | None = None) -> bytes:
    """TypeProto of a tensor; without dimensions of any shape."""
    shape = b"" if dimensions is None else bytes_field(2, bytes_field(1) * dimensions)
    return bytes_field(1, number_field(1, element), shape)


def _element(kind: bytes) -> int:
    """TypeProto.tensor_type.elem_type."""
    [(start, end)] = [(start, end) for number, start, end in fields(kind, 0, len(kind)) if number == 1]
    return next(value for number, value, stop in fields(kind, start, end) if number == 1 and stop < 0)


def _number(name: str, element: int, value: bytes) -> bytes:
    """TensorProto of no dimensions."""
    return b"".join([number_field(2, element), bytes_field(8, name), bytes_field(9, value)])
