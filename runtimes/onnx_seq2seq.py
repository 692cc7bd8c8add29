"""An encoder-decoder model as ONNX graphs: the encoder and its keys and values run once, the decoder once per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import AssayError
from runtimes.onnx_binding import bind_array, bind_out, new_logits
from runtimes.onnx_cache import KvCache
from runtimes.onnx_file import ENCODER, FIRST, LATER, MERGED
from runtimes.onnx_provider import Provider
from runtimes.onnx_sessions import CacheEntry, open_graph, refuse_unpaired

Ids = Sequence[int]

_BRANCH = "use_cache_branch"  # a merged graph's switch between its two halves


class Seq2SeqDecoder:
    """The graphs of a folder and the sequences that run through them, one per row.

    Optimum writes the decoder twice, without and with a cache to read, or both in one graph.

    Raises:
        AssayError: a graph is missing, or the cache's inputs and outputs do not belong together.
    """

    def __init__(self, folder: Path, provider: Provider, threads: int, start_id: int) -> None:
        self._device, self._start_id = provider, start_id
        self._encoder = open_graph(folder / ENCODER, provider, threads)
        self._encoder.require(("input_ids", "attention_mask"), ("last_hidden_state",))
        merged = (folder / MERGED).is_file() and not (folder / LATER).is_file()
        self._first = open_graph(folder / (MERGED if merged else FIRST), provider, threads)
        self._later = self._first if merged else open_graph(folder / LATER, provider, threads)
        for graph in (self._first, self._later):
            graph.require(("input_ids", "encoder_attention_mask"), ("logits",))
        self._first.require(("encoder_hidden_states",), ())
        self._own, self._cross = self._caches()
        self.vocab_size = self._first.vocab_size()

    def _caches(self) -> tuple[list[CacheEntry], list[CacheEntry]]:
        """Of the decoder itself, which grows, and of the encoder's states, which does not."""
        reads = self._later.past()
        refuse_unpaired(reads, self._first.presents(), self._first.path)
        own = [entry for entry in reads if ".encoder." not in entry.past]
        cross = [entry for entry in reads if ".encoder." in entry.past]
        grown = [entry for entry in self._later.presents() if ".encoder." not in entry.past]
        refuse_unpaired(own, grown, self._later.path)
        if not cross:
            raise AssayError(
                "the decoder reads no keys and values of the encoder",
                where=str(self._later.path),
                expected="inputs past_key_values.N.encoder.key and .value",
            )
        return own, cross

    def begin(self, prompts: Sequence[Ids], most: int) -> np.ndarray:
        """Encode and feed the decoder's start; room for `most` tokens. Logits, float32 [rows, vocab_size]."""
        hidden, mask = self._encode(prompts)
        rows, width = mask.shape
        self._hidden, self._mask = hidden, mask
        self._own_cache = KvCache(self._own, self._device, rows, most + 1)
        self._cross_cache = KvCache(self._cross, self._device, rows, width)
        self._sources = np.arange(rows)  # which prompt each row answers
        binding = self._first.session.io_binding()
        logits = self._bind_first(binding, np.full((rows, 1), self._start_id, np.int64), hidden, mask)
        self._own_cache.bind_present(binding, 1)
        self._cross_cache.bind_present(binding, width)
        self._first.run(binding)
        self._own_cache.advance(1)
        self._cross_cache.advance(width)
        self._token: np.ndarray | None = None
        return logits[:, 0].astype(np.float32, copy=False)

    def _encode(self, prompts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states [rows, width, d_model], and int64 [rows, width] that is 0 on the padding, on the right."""
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        return self._encoder.compute("last_hidden_state", {"input_ids": ids, "attention_mask": mask}), mask

    def _bind_first(self, binding: Any, ids: np.ndarray, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Bind everything but the cache that is written; returns the logits' array. All of it must outlive the run."""
        logits = new_logits(self._first, *ids.shape)
        bind_array(binding, "input_ids", ids)
        bind_array(binding, "encoder_hidden_states", hidden)
        bind_array(binding, "encoder_attention_mask", mask)
        if _BRANCH in self._first.inputs:
            bind_array(binding, _BRANCH, _NO)
            self._empty = [KvCache(entries, self._device, len(ids), 1) for entries in (self._own, self._cross)]
            for cache in self._empty:
                cache.bind_past(binding)
        bind_out(binding, "logits", logits)
        return logits

    def step(self, tokens: Ids) -> np.ndarray:
        """One token more for every row; float32 [rows, vocab_size], which the next step overwrites."""
        if self._token is None:
            self._bind_step()
        assert self._token is not None
        self._token[:, 0] = tokens
        self._own_cache.bind_past(self._binding)
        self._own_cache.bind_present(self._binding, 1)
        self._later.run(self._binding)
        self._own_cache.advance(1)
        return self._logits[:, 0].astype(np.float32, copy=False)

    def _bind_step(self) -> None:
        """Bind what stays as it is from token to token; the encoder's keys and values among it."""
        rows = self._own_cache.rows
        self._binding = self._later.session.io_binding()
        self._token = np.zeros((rows, 1), np.int64)
        self._logits = new_logits(self._later, rows, 1)
        bind_array(self._binding, "input_ids", self._token)
        bind_array(self._binding, "encoder_attention_mask", self._mask)
        if "encoder_hidden_states" in self._later.inputs:
            bind_array(self._binding, "encoder_hidden_states", self._hidden)
        if _BRANCH in self._later.inputs:
            bind_array(self._binding, _BRANCH, _YES)
        self._cross_cache.bind_past(self._binding)
        bind_out(self._binding, "logits", self._logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, some perhaps several times."""
        picked = np.asarray(rows)
        if np.array_equal(picked, np.arange(self._own_cache.rows)):
            return
        self._own_cache.keep(picked)
        sources = self._sources[picked]
        if np.array_equal(sources, self._sources):
            return
        self._cross_cache.keep(picked)
        self._sources, self._mask, self._hidden = sources, self._mask[picked], self._hidden[picked]
        self._token = None


_NO, _YES = np.zeros(1, np.bool_), np.ones(1, np.bool_)
