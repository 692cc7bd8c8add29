"""A decoder-only model as one ONNX graph with a key-value cache: sequences are read, extended and dropped together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtimes.onnx_binding import bind_array, bind_out, new_logits, only_what_is_asked
from runtimes.onnx_cache import KvCache
from runtimes.onnx_provider import Provider
from runtimes.onnx_sessions import Graph, refuse_unpaired

Ids = Sequence[int]

_CHUNK = 512  # prompt tokens per run: an exported graph holds the products of all of them with all cells at once
_LOGITS_BYTES = 32 << 20  # of a prompt's own positions, above which they are not asked for


class CausalDecoder:
    """model.onnx and the sequences that run through it, one per row.

    Raises:
        AssayError: the graph has no logits, or its cache's inputs and outputs do not belong together.
    """

    def __init__(self, graph: Graph, device: Provider) -> None:
        graph.require(("input_ids",), ("logits",))
        self._graph, self._device = graph, device
        self._entries = graph.past()
        refuse_unpaired(self._entries, graph.presents(), graph.path)
        self.vocab_size = graph.vocab_size()
        self._quiet = only_what_is_asked()

    def begin(self, prompts: Sequence[Ids], most: int) -> np.ndarray:
        """Read the prompts, with room for `most` tokens; logits of the last positions, float32 [rows, vocab_size]."""
        width = max(map(len, prompts))
        if width <= _CHUNK and len(prompts) * width * self.vocab_size * 4 <= _LOGITS_BYTES:
            self._place(prompts, width + most)
            return self.extend(_left_padded(prompts))[:, -1]
        self.read(prompts, most + 1)
        return self.step([prompt[-1] for prompt in prompts])

    def read(self, prompts: Sequence[Ids], most: int) -> None:
        """Read the prompts but for their last tokens, with room for `most` tokens more; no logits are computed."""
        heads = [prompt[:-1] for prompt in prompts]
        self._place(heads, max(map(len, heads)) + most)
        ids = _left_padded(heads)
        for start in range(0, ids.shape[1], _CHUNK):
            self._run(ids[:, start : start + _CHUNK], None)

    def _place(self, prompts: Sequence[Ids], cells: int) -> None:
        """Padding stands on the left, so that every row's last token is in the last column."""
        width = max(map(len, prompts))
        self._cache = KvCache(self._entries, self._device, len(prompts), cells)
        self._seen = np.ones((len(prompts), cells), np.int64)
        for row, prompt in enumerate(prompts):
            self._seen[row, : width - len(prompt)] = 0
        self._positions = np.array([[len(prompt) - width] for prompt in prompts], np.int64)  # of the next token
        self._binding = self._graph.session.io_binding()
        self._token: np.ndarray | None = None

    def extend(self, ids: np.ndarray) -> np.ndarray:
        """Put more tokens, int64 [rows, n], behind every row; their logits, float32 [rows, n, vocab_size]."""
        logits = new_logits(self._graph, *ids.shape)
        self._run(ids, logits)
        return logits.astype(np.float32, copy=False)

    def _run(self, ids: np.ndarray, logits: np.ndarray | None) -> None:
        more = ids.shape[1]
        ids = np.ascontiguousarray(ids)
        positions = np.maximum(self._positions + np.arange(more), 0)
        self._binding.clear_binding_outputs()
        bind_array(self._binding, "input_ids", ids)
        if "position_ids" in self._graph.inputs:
            bind_array(self._binding, "position_ids", positions)
        if logits is not None:
            bind_out(self._binding, "logits", logits)
        self._token = None
        self._run_bound(more, self._quiet if logits is None else None)

    def _run_bound(self, more: int, options: Any) -> None:
        seen = np.ascontiguousarray(self._seen[:, : self._cache.used + more])
        if "attention_mask" in self._graph.inputs:
            bind_array(self._binding, "attention_mask", seen)
        self._cache.bind_past(self._binding)
        self._cache.bind_present(self._binding, more)
        self._graph.run(self._binding, options)
        self._cache.advance(more)
        self._positions += more

    def step(self, tokens: Ids) -> np.ndarray:
        """One token more for every row; float32 [rows, vocab_size], which the next step overwrites."""
        if self._token is None:
            self._bind_step()
        assert self._token is not None
        self._token[:, 0] = tokens
        self._run_bound(1, None)
        return self._logits[:, 0].astype(np.float32, copy=False)

    def _bind_step(self) -> None:
        """Bind what keeps its shape from token to token."""
        self._token = np.zeros((self._cache.rows, 1), np.int64)
        self._logits = new_logits(self._graph, self._cache.rows, 1)
        bind_array(self._binding, "input_ids", self._token)
        if "position_ids" in self._graph.inputs:
            bind_array(self._binding, "position_ids", self._positions)
        bind_out(self._binding, "logits", self._logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, some perhaps several times."""
        if list(rows) == list(range(self._cache.rows)):
            return
        picked = np.asarray(rows)
        self._cache.keep(picked)
        self._seen, self._positions = self._seen[picked], self._positions[picked]
        self._token = None


def _left_padded(prompts: Sequence[Ids]) -> np.ndarray:
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
    return ids
