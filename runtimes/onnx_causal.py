"""A decoder-only model as one ONNX graph with a key-value cache: sequences are read, extended and dropped together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtimes.onnx_loop import no_tokens, open_loop
from runtimes.onnx_sessions import Graph, empty_cache, refuse_unpaired
from runtimes.onnx_values import Value, array_of, rows_of

Ids = Sequence[int]

_CHUNK = 512  # prompt tokens per run: an exported graph holds the products of all of them with all cells at once
_LOGITS_BYTES = 32 << 20  # of a prompt's own positions, above which they are not asked for


class CausalDecoder:
    """model.onnx and the sequences that run through it, one per row.

    Raises:
        AssayError: the graph has no logits, or its cache's inputs and outputs do not belong together.
    """

    def __init__(self, graph: Graph, threads: int) -> None:
        graph.require(("input_ids",), ("logits",))
        self._graph = graph
        self._entries = graph.past()
        refuse_unpaired(self._entries, graph.presents(), graph.path)
        self._pasts = [entry.past for entry in self._entries]
        self._presents = [entry.present for entry in self._entries]
        self._loop = open_loop(graph, dict(zip(self._pasts, self._presents, strict=True)), threads)
        self.vocab_size = graph.vocab_size()

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
            self._run(ids[:, start : start + _CHUNK], [])

    def _place(self, prompts: Sequence[Ids], cells: int) -> None:
        """Padding stands on the left, so that every row's last token is in the last column."""
        width = max(map(len, prompts))
        self._cache = empty_cache(self._entries, len(prompts))
        self._used = 0
        self._seen = np.ones((len(prompts), cells), np.int64)
        for row, prompt in enumerate(prompts):
            self._seen[row, : width - len(prompt)] = 0
        self._positions = np.array([[len(prompt) - width] for prompt in prompts], np.int64)  # of the next token

    def extend(self, ids: np.ndarray) -> np.ndarray:
        """Put more tokens, int64 [rows, n], behind every row; their logits, float32 [rows, n, vocab_size]."""
        [logits] = self._run(ids, ["logits"])
        return array_of(logits).astype(np.float32, copy=False)

    def step(self, tokens: Ids) -> np.ndarray:
        """One token more for every row; float32 [rows, vocab_size]."""
        return self.extend(np.array(tokens, np.int64)[:, None])[:, 0]

    def walk(self, tokens: Ids, *, ends: np.ndarray, live: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """See `onnx_decode.Decoder`."""
        if self._loop is None or most == 1 or not self._loop.suits(self._cache):
            return no_tokens(len(tokens)), self.step(tokens)
        given = self._given(np.array(tokens, np.int64)[:, None])
        fed, logits, self._cache = self._loop.run(given, self._presents, ends=ends, live=live, most=most)
        self._used += len(fed) + 1
        self._positions += len(fed) + 1
        return fed, logits

    def _run(self, ids: np.ndarray, wanted: list[str]) -> list[Value]:
        found = self._graph.run(self._given(ids), [*wanted, *self._presents], partly=not wanted)
        self._cache = found[len(wanted) :]
        self._used += ids.shape[1]
        self._positions += ids.shape[1]
        return found[: len(wanted)]

    def _given(self, ids: np.ndarray) -> dict[str, Value]:
        given: dict[str, Value] = {"input_ids": np.ascontiguousarray(ids)}
        if "position_ids" in self._graph.inputs:
            given["position_ids"] = np.maximum(self._positions + np.arange(ids.shape[1]), 0)
        if "attention_mask" in self._graph.inputs:
            given["attention_mask"] = np.ascontiguousarray(self._seen[:, : self._used + ids.shape[1]])
        given.update(zip(self._pasts, self._cache, strict=True))
        return given

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, some perhaps several times."""
        if list(rows) == list(range(len(self._seen))):
            return
        picked = np.asarray(rows)
        self._cache = rows_of(self._cache, picked, self._graph.device)
        self._seen, self._positions = self._seen[picked], self._positions[picked]


def _left_padded(prompts: Sequence[Ids]) -> np.ndarray:
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
    return ids
