"""Many greedy tokens in one run, for small models, of which a loop in Python would take a fifth of the time.

A larger one takes many milliseconds a token, and a second session would hold its weights twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from contract.errors import AssayError
from runtimes.loop_model import BEFORE, ENDS, IDS, LIVE, LOGITS, ONES, POSITIONS, SEEN, STEPS, TOKENS, looped, outer
from runtimes.onnx_file import read_onnx
from runtimes.onnx_sessions import Graph, open_made
from runtimes.onnx_values import HOST, Value, array_of, size_of

_MOST_BYTES = 64 << 20  # of weights
_MOST_CACHE_BYTES = 8 << 20  # a larger cache takes longer than Python does, and the loop holds one more of it
_OLDEST_OPSET = 13  # the first whose reductions are written as the loop's
_NOTHING = np.zeros((1, 1, 1), np.float32)

# So long may a reader of the stream wait for more, and so much is written in vain behind a stop string.
_RUN_S = 0.05
_MOST_STEPS = 128


class GreedyLoop:
    """A session that feeds a token to every row, then the likeliest one behind it, and so on.

    Args:
        graph: made by `looped`.
        changing: inputs of the decoder's own graph that are others for every token.
    """

    def __init__(self, graph: Graph, changing: Iterable[str]) -> None:
        self._graph, self._changing = graph, frozenset(changing)
        self.most_steps = 16  # tokens fed in one run; later by the pace of the run before

    def suits(self, cache: Iterable[Value]) -> bool:
        """Is a cache small enough that the loop gains time?"""
        return 4 * sum(map(size_of, cache)) <= _MOST_CACHE_BYTES

    def run(
        self, given: Mapping[str, Value], cache: Sequence[str], *, ends: np.ndarray, live: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray, list[Value]]:
        """Go on until the likeliest token of a live row is an end or not finite, a logit is NaN, or `most` are fed.

        Args:
            given: the inputs of the decoder's graph, with one id per row.
            cache: the outputs to return.
            ends: int64 [any].
            live: bool [rows].
            most: tokens to feed at most, 1 or more; no more than `most_steps` are.

        Returns:
            The tokens chosen and fed on the way, int64 [fed - 1, rows]; the logits behind the last one fed, float32
            [rows, vocab_size]; the cache.

        Raises:
            ModelError, NoEngineError: see `Graph.run`.
        """
        rows = (len(live), 1)
        fed = {outer(name) if name in self._changing else name: value for name, value in given.items()}
        fed |= {ENDS: ends, LIVE: live.reshape(rows), ONES: np.ones(rows, np.int64), outer(BEFORE): _NOTHING}
        fed[STEPS] = np.array(min(most, self.most_steps))
        began_s = time.perf_counter()
        tokens, logits, *made = self._graph.run(fed, [TOKENS, outer(LOGITS), *map(outer, cache)])
        chosen = array_of(tokens)[:-1, :, 0]
        pace_s = (time.perf_counter() - began_s) / (len(chosen) + 1)
        self.most_steps = min(_MOST_STEPS, max(1, int(_RUN_S / pace_s)))
        return chosen, array_of(logits)[:, 0], made


def no_tokens(rows: int) -> np.ndarray:
    """What is fed behind the first token where only one is, int64 [0, rows]."""
    return np.empty((0, rows), np.int64)


def open_loop(graph: Graph, cache: Mapping[str, str], threads: int) -> GreedyLoop | None:
    """The loop around a decoder's graph.

    Args:
        graph: with IDS, perhaps POSITIONS and SEEN, a cache, and inputs that stay the same from token to token.
        cache: inputs that hold what the run before has put out, and those outputs.
        threads: to compute with.

    Returns:
        None where the graph is not on the CPU, not small, not of the types that the loop is made for, not one that
        onnxruntime can load inside a loop, or there is no memory for it: it can still be run token by token.
    """
    own = [name for name in (IDS, POSITIONS, SEEN) if name in graph.inputs]
    integers = all(graph.inputs[name].type == "tensor(int64)" for name in own)
    if graph.device is not HOST or not integers or graph.outputs[LOGITS].type != "tensor(float)":
        return None
    file = read_onnx(graph.path)
    if file.weight_bytes > _MOST_BYTES or file.opset < _OLDEST_OPSET:
        return None
    try:
        made = open_made(looped(graph.path.read_bytes(), cache), graph.path, threads)
    except (AssayError, ValueError):
        return None
    return GreedyLoop(made, [*own, *cache])
