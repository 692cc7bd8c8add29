"""Binding plain arrays to a graph by address."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from runtimes.onnx_sessions import Graph


def bind_array(binding: Any, name: str, values: np.ndarray) -> None:
    """Let the graph read a contiguous array, which must live until it has run."""
    binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)


def bind_out(binding: Any, name: str, values: np.ndarray) -> None:
    """Let the graph write a contiguous array of exactly the output's shape."""
    binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)


def new_logits(graph: Graph, rows: int, positions: int) -> np.ndarray:
    """Room for a graph's logits, [rows, positions, vocab_size], in the graph's own dtype."""
    return np.empty((rows, positions, graph.vocab_size()), graph.dtype_of("logits"))


def only_what_is_asked() -> onnxruntime.RunOptions:
    """Run no node that no bound output needs."""
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options
