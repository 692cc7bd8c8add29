"""Opening ONNX graphs in onnxruntime on the execution provider asked for, and what their key-value caches look like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from contract.errors import AssayError, ModelError, NoEngineError, listed
from runtimes.onnx_provider import PROVIDERS, Provider
from runtimes.onnx_values import CUDA, HOST, Places, Value, run_session

_OLDEST = (1, 23, 1)  # 1.23.0 runs Attention, but gives grouped heads the wrong keys, and says nothing
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_PAST, _PRESENT = "past_key_values.", "present."
_MACHINE = re.compile(r"bad.?alloc|failed to allocate|out of memory|CUDA (failure|error)|CUDNN|CUBLAS", re.IGNORECASE)


@dataclass(frozen=True)
class CacheEntry:
    """One key or value tensor of the cache: [rows, heads, cells, size]."""

    past: str  # the input's name
    present: str  # the output's
    heads: int
    size: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Graph:
    """A session, and the names and types of what goes in and comes out."""

    session: onnxruntime.InferenceSession
    path: Path
    inputs: Mapping[str, Any]  # name -> NodeArg
    outputs: Mapping[str, Any]

    device: Any  # where its cache lies

    def run(self, given: Mapping[str, Value], wanted: Sequence[str], *, partly: bool = False) -> list[Value]:
        """Its outputs of these names: the cache's on its own device, all others on the host.

        Args:
            given: its inputs, by name.
            wanted: names of outputs.
            partly: leave out the nodes that none of these needs.

        Raises:
            ModelError: onnxruntime could not; what goes in was checked before, so the graph is at fault.
            NoEngineError: the machine's memory or its device is.
        """
        try:
            return run_session(self.session, given, _places(tuple(wanted), self.device), partly=partly)
        except Exception as error:
            raise _failed("the graph does not run", self.path, error) from None

    def past(self) -> list[CacheEntry]:
        """The cache it reads, in the graph's order.

        Raises:
            AssayError: a tensor of it is not one of four dimensions, heads and size known.
        """
        return [self._entry(self.inputs[name], name) for name in self.inputs if name.startswith(_PAST)]

    def presents(self) -> list[CacheEntry]:
        """The cache it writes."""
        return [
            self._entry(self.outputs[name], _PAST + name.removeprefix(_PRESENT))
            for name in self.outputs
            if name.startswith(_PRESENT)
        ]

    def vocab_size(self) -> int:
        """The last dimension of its logits."""
        size = self.outputs["logits"].shape[-1]
        if not isinstance(size, int):
            raise AssayError("the graph does not say how many ids its logits have", where=str(self.path), got=str(size))
        return size

    def require(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Raise where an input or output is missing."""
        missing = [f"input {name}" for name in inputs if name not in self.inputs]
        missing += [f"output {name}" for name in outputs if name not in self.outputs]
        if missing:
            raise AssayError(
                "the graph lacks what a language model of this kind has",
                where=str(self.path),
                expected=listed(missing),
                got=f"inputs {listed(self.inputs, 4)}; outputs {listed(self.outputs, 4)}",
                hint="export it again with its cache: assay export onnx MODEL --out DIR",
            )

    def _entry(self, argument: Any, past: str) -> CacheEntry:
        shape = argument.shape
        if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise AssayError(
                "a tensor of the cache has another shape than [rows, heads, cells, size]",
                where=f"{self.path}: {argument.name}",
                got=str(shape),
            )
        dtype = _dtype(argument, self.path)
        return CacheEntry(past, _PRESENT + past.removeprefix(_PAST), shape[1], shape[3], dtype)


def _dtype(argument: Any, path: Path) -> np.dtype[Any]:
    if argument.type not in _DTYPES:
        raise AssayError(
            "the graph computes in a type that is not run here",
            where=f"{path}: {argument.name}",
            expected=" or ".join(_DTYPES),
            got=argument.type,
        )
    return _DTYPES[argument.type]


def open_graph(path: Path, provider: Provider, threads: int) -> Graph:
    """Load one .onnx file.

    Raises:
        AssayError: there is no such file, or onnxruntime cannot load it.
        NoEngineError: it would run elsewhere than was asked for, or onnxruntime is too old.
    """
    _refuse_older(path)
    if not path.is_file():
        raise AssayError(
            "a graph of the model is missing",
            where=str(path),
            hint="copy the whole folder, or export it again: assay export onnx MODEL --out DIR",
        )
    return _graph(path, str(path), _options(threads), provider)


def open_made(model: bytes, path: Path, threads: int) -> Graph:
    """Load a graph that was made of the .onnx file `path`, whose weights may lie beside that file, on the CPU.

    Raises:
        AssayError: onnxruntime cannot load it.
    """
    options = _options(threads)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return _graph(path, model, options, "cpu")


def _graph(path: Path, model: str | bytes, options: onnxruntime.SessionOptions, provider: Provider) -> Graph:
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise _elsewhere(path, wanted, listed(onnxruntime.get_available_providers()))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[wanted], enable_fallback=False)
    except Exception as error:
        raise _failed("onnxruntime cannot load the graph", path, error) from None
    if session.get_providers()[0] != wanted:
        raise _elsewhere(path, wanted, listed(session.get_providers()))
    inputs = {argument.name: argument for argument in session.get_inputs()}
    outputs = {argument.name: argument for argument in session.get_outputs()}
    return Graph(session, path, inputs, outputs, HOST if provider == "cpu" else CUDA)


def _refuse_older(path: Path) -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:3])
    if version < _OLDEST:
        raise NoEngineError(
            "onnxruntime is too old: what it computes for grouped attention heads is wrong, or it does not know them",
            where=str(path),
            expected=f"onnxruntime {'.'.join(map(str, _OLDEST))} or newer",
            got=onnxruntime.__version__,
            hint="pip install --upgrade onnxruntime, or onnxruntime-gpu where that is installed",
        )


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # every step has another shape, so a remembered plan is never used again
    options.log_severity_level = 4  # what goes wrong is raised
    return options


def _elsewhere(path: Path, wanted: str, there: str) -> NoEngineError:
    return NoEngineError(
        "the execution provider that was asked for is not there, and no other is taken instead",
        where=str(path),
        expected=wanted,
        got=there,
        hint="install onnxruntime-gpu in place of onnxruntime, or set ASSAY_ONNX_PROVIDER=cpu",
    )


def _failed(what: str, path: Path, error: Exception) -> AssayError:
    """onnxruntime's own error, for people. It raises a dozen classes that share no base but Exception."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    reason = text.splitlines()[0][:500] if text else type(error).__name__
    if isinstance(error, MemoryError) or _MACHINE.search(text):
        return NoEngineError(f"{what} on this machine", where=str(path), got=reason)
    return ModelError(what, where=str(path), got=reason)


@lru_cache(maxsize=256)
def _places(wanted: tuple[str, ...], device: Any) -> Places:
    """Where outputs are to lie; asked for at every token."""
    return Places(list(wanted), [device if name.startswith(_PRESENT) else HOST for name in wanted])


def refuse_unpaired(reads: list[CacheEntry], writes: list[CacheEntry], where: Path) -> None:
    """Raise unless every tensor of the cache that is read is written by the step before, in the same shape."""
    written = {entry.past: entry for entry in writes}
    problems = [f"{entry.past}: nothing writes {entry.present}" for entry in reads if entry.past not in written]
    problems += [
        f"{entry.past}: read as {entry.heads} × {entry.size} {entry.dtype}, "
        f"written as {other.heads} × {other.size} {other.dtype}"
        for entry in reads
        if (other := written.get(entry.past)) is not None and other != entry
    ]
    read = {entry.past for entry in reads}
    problems += [f"{entry.present}: nothing reads it" for entry in writes if entry.past not in read]
    if problems or not reads:
        raise AssayError(
            "the cache's inputs and outputs do not belong together",
            where=str(where),
            got=listed(problems) or "no input past_key_values.*",
            hint="export it again with its cache: assay export onnx MODEL --out DIR",
        )


def empty_cache(entries: Sequence[CacheEntry], rows: int) -> list[Value]:
    """The cache of so many rows before anything was read."""
    return [np.zeros((rows, entry.heads, 0, entry.size), entry.dtype) for entry in entries]


def quantizes_activations(path: Path) -> bool:
    """Does the graph quantize activations while it runs: one scale for everything in a run?"""
    with path.open("rb") as file:
        tail = b""
        while block := file.read(1 << 22):
            if b"DynamicQuantize" in tail + block:
                return True
            tail = block[-32:]
    return False
