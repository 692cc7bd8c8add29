"""Values that graphs take and give, in onnxruntime's own form: what one run has made, the next reads where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as engine

Value = Any  # an array, which is on the host, or onnxruntime's own OrtValue, on whatever device
HOST = engine.OrtDevice(engine.OrtDevice.cpu(), engine.OrtDevice.default_memory(), 0)
CUDA = engine.OrtDevice(engine.OrtDevice.cuda(), engine.OrtDevice.default_memory(), 0)

_ALL = onnxruntime.RunOptions()
_WHAT_IS_ASKED = onnxruntime.RunOptions()  # no node that no wanted output needs
_WHAT_IS_ASKED.only_execute_path_to_fetches = True


class Places(NamedTuple):
    """Names of outputs, and the device each is to be on."""

    names: list[str]
    devices: list[Any]


def array_of(value: Value) -> np.ndarray:
    """A value's numbers; of one on the host the very memory."""
    found: np.ndarray = value if isinstance(value, np.ndarray) else value.numpy()
    return found


def size_of(value: Value) -> int:
    """How many numbers it holds."""
    return prod(value.shape if isinstance(value, np.ndarray) else value.shape())


def rows_of(values: Sequence[Value], rows: np.ndarray, device: Any) -> list[Value]:
    """These rows of every value, int64 [any], in this order, some perhaps several times; by way of the host."""
    picked = [array_of(value)[rows] for value in values]
    return picked if device is HOST else [engine.OrtValue.ortvalue_from_numpy(array, device) for array in picked]


def run_session(
    session: onnxruntime.InferenceSession,
    given: Mapping[str, Value],
    wanted: Places,
    *,
    partly: bool,
) -> list[Value]:
    """Run a graph.

    Args:
        session: of the graph.
        given: its inputs, by name.
        wanted: its outputs.
        partly: leave out the nodes that none of these needs.

    Returns:
        The outputs, in the order wanted.
    """
    inputs, outputs = engine.OrtValueVector(), engine.OrtValueVector()
    inputs.reserve(len(given))
    for value in given.values():  # which holds the arrays, whose memory is used as it is
        if isinstance(value, np.ndarray):
            value = engine.OrtValue.ortvalue_from_numpy(value, HOST)
        inputs.push_back(value)
    options = _WHAT_IS_ASKED if partly else _ALL
    session.run_with_ortvaluevector(options, list(given), inputs, wanted.names, outputs, wanted.devices)
    return [outputs[at] for at in range(len(wanted.names))]  # iterating over it takes six times as long
