"""What stands in a folder's ONNX files, by protobuf's wire format: operators, weights' types and shapes, no values.

The fields are those of onnx.proto; the `onnx` package is not needed, and nothing is loaded.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from contract.artifact import Artifact
from contract.errors import AssayError, listed
from contract.model_folder import is_encoder_decoder
from runtimes.wire import fields, integer

CAUSAL, ENCODER = "model.onnx", "encoder_model.onnx"
FIRST, LATER, MERGED = "decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"

# TensorProto.DataType
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
_BITS |= dict.fromkeys((17, 18, 19, 20), 8) | dict.fromkeys((21, 22, 23), 4)
_HALF = {10, 16}  # float16, bfloat16
_INT4 = {21, 22}
_INT8 = {2, 3}
_BLOCKS = {"MatMulNBits", "GatherBlockQuantized"}
_TABLE = re.compile(r"(embed_positions|position_embeddings|wpe)\.weight$")


@dataclass
class OnnxFile:
    """One graph and the graphs inside it (branches)."""

    operators: set[str] = field(default_factory=set)
    elements: Counter[int] = field(default_factory=Counter)  # stored values by TensorProto.DataType
    block_bits: set[int] = field(default_factory=set)  # of weights that are packed in blocks
    tables: dict[str, int] = field(default_factory=dict)  # learned positions: the weight's name, its rows
    opset: int = 0  # of the standard's own operators
    outside: set[str] = field(default_factory=set)  # the files that weights lie in, relative to the graph's folder

    @property
    def weight_bytes(self) -> int:
        """What the stored values take, wherever they are stored."""
        return sum(count * _BITS.get(kind, 64) for kind, count in self.elements.items()) // 8


def graph_files(folder: Path) -> list[Path]:
    """The files that are run, of those that are there."""
    if not is_encoder_decoder(folder):
        names: tuple[str, ...] = (CAUSAL,)
    elif (folder / MERGED).is_file() and not (folder / LATER).is_file():
        names = (ENCODER, MERGED)
    else:
        names = (ENCODER, FIRST, LATER)
    return [folder / name for name in names if (folder / name).is_file()]


def precision_of(folder: Path) -> str | None:
    """ "int4", "int8", "fp16" or "fp32", as its graphs store and multiply weights; None where there is no graph.

    Raises:
        AssayError: a graph cannot be read.
    """
    files = [read_onnx(path) for path in graph_files(folder)]
    if not files:
        return None
    operators = set[str]().union(*(file.operators for file in files))
    bits = set[int]().union(*(file.block_bits for file in files))
    elements = sum((file.elements for file in files), Counter[int]())
    if _BLOCKS & operators or _INT4 & set(elements):
        return f"int{min(bits, default=4)}"
    if any("DynamicQuantize" in name or name in ("MatMulInteger", "QLinearMatMul") for name in operators):
        return "int8"
    half, eight = (sum(elements[kind] for kind in kinds) for kinds in (_HALF, _INT8))
    if eight > elements.total() / 2:
        return "int8"
    return "fp16" if half > elements.total() / 2 else "fp32"


def refuse_short_tables(folder: Path, context_length: int) -> None:
    """Raise where a graph has learned positions, and fewer of them than the config promises.

    Args:
        folder: of the model.
        context_length: by its config.
    """
    for path in graph_files(folder):
        for name, rows in read_onnx(path).tables.items():
            if rows < context_length:
                raise AssayError(
                    "the config promises a longer context than the graph has positions for",
                    where=f"{path}: {name}",
                    expected=f"at least {context_length} positions",
                    got=str(rows),
                    hint="copy the folder whole, or export it again: assay export onnx MODEL --out DIR",
                )


def refuse_unlisted_weights(artifact: Artifact) -> None:
    """Raise where a graph takes weights from a file that the artifact's digest does not cover.

    Raises:
        AssayError: naming the files; or a graph cannot be read.
    """
    listed_files = {record.path for record in artifact.manifest.files}
    outside = {name for path in graph_files(artifact.folder) for name in read_onnx(path).outside}
    unknown = sorted(name for name in outside if Path(name).as_posix() not in listed_files)
    if unknown:
        raise AssayError(
            "the graph takes weights from files that are not part of the artifact",
            where=str(artifact.path),
            got=listed(unknown),
            hint="keep them beside the graph, under names that neither begin with a dot nor lie in measured/",
        )


def read_onnx(path: Path) -> OnnxFile:
    """Read one .onnx file; weights outside it are known by their shapes.

    Raises:
        AssayError: it is no ONNX file.
    """
    found = OnnxFile()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in fields(data, 0, len(data)):
                if number == 7:  # ModelProto.graph
                    _graph(data, start, end, found)
                elif number == 8:  # opset_import
                    _opset(data, start, end, found)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise AssayError("not an ONNX file that can be read", where=str(path), got=str(error)) from None
    return found


def _opset(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> None:
    domain, version = b"", 0
    for number, start, stop in fields(data, at, end):
        if number == 1:  # OperatorSetIdProto.domain
            domain = data[start:stop]
        elif number == 2:
            version = start
    if domain in (b"", b"ai.onnx"):
        found.opset = version


def _graph(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> None:
    for number, start, stop in fields(data, at, end):
        if number == 1:  # GraphProto.node
            _node(data, start, stop, found)
        elif number == 5:  # initializer
            _tensor(data, start, stop, found)


def _node(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> None:
    operator, bits = "", 4
    for number, start, stop in fields(data, at, end):
        if number == 4:  # NodeProto.op_type
            operator = data[start:stop].decode()
        elif number == 5:  # attribute
            bits = _attribute(data, start, stop, found) or bits
    found.operators.add(operator)
    if operator in _BLOCKS:
        found.block_bits.add(bits)


def _attribute(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> int | None:
    """The value of an attribute called "bits"; tensors and graphs are gone through."""
    name, value = b"", 0
    for number, start, stop in fields(data, at, end):
        match number:
            case 1:  # AttributeProto.name
                name = data[start:stop]
            case 3:  # i
                value = start
            case 5:  # t
                _tensor(data, start, stop, found)
            case 6 | 11:  # g, graphs
                _graph(data, start, stop, found)
    return value if name == b"bits" else None


def _tensor(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> None:
    shape: list[int] = []
    kind, name = 0, ""
    for number, start, stop in fields(data, at, end):
        match number:
            case 1 if stop < 0:  # TensorProto.dims, one by one
                shape.append(start)
            case 1:  # or packed
                while start < stop:
                    size, start = integer(data, start)
                    shape.append(size)
            case 2:  # data_type
                kind = start
            case 8:  # name
                name = data[start:stop].decode()
            case 13:  # external_data
                _outside(data, start, stop, found)
    found.elements[kind] += prod(shape)
    if len(shape) == 2 and _TABLE.search(name):
        found.tables[name] = shape[0]


def _outside(data: mmap.mmap, at: int, end: int, found: OnnxFile) -> None:
    key = value = b""
    for number, start, stop in fields(data, at, end):
        if number == 1:  # StringStringEntryProto.key
            key = data[start:stop]
        elif number == 2:
            value = data[start:stop]
    if key == b"location":
        found.outside.add(value.decode())
