"""An encoder-decoder model as ONNX graphs: the encoder and its keys and values run once, the decoder once per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contract.errors import AssayError
from runtimes.onnx_file import ENCODER, FIRST, LATER, MERGED
from runtimes.onnx_loop import no_tokens, open_loop
from runtimes.onnx_provider import Provider
from runtimes.onnx_sessions import CacheEntry, empty_cache, open_graph, refuse_unpaired
from runtimes.onnx_values import HOST, Value, array_of, rows_of

Ids = Sequence[int]

_BRANCH = "use_cache_branch"  # a merged graph's switch between its two halves


class Seq2SeqDecoder:
    """The graphs of a folder and the sequences that run through them, one per row.

    Optimum writes the decoder twice, without and with a cache to read, or both in one graph.

    Raises:
        AssayError: a graph is missing, or the cache's inputs and outputs do not belong together.
    """

    def __init__(self, folder: Path, provider: Provider, threads: int, start_id: int) -> None:
        self._start_id = start_id
        self._encoder = open_graph(folder / ENCODER, provider, threads)
        self._encoder.require(("input_ids", "attention_mask"), ("last_hidden_state",))
        merged = (folder / MERGED).is_file() and not (folder / LATER).is_file()
        self._first = open_graph(folder / (MERGED if merged else FIRST), provider, threads)
        self._later = self._first if merged else open_graph(folder / LATER, provider, threads)
        for graph in (self._first, self._later):
            graph.require(("input_ids", "encoder_attention_mask"), ("logits",))
        self._first.require(("encoder_hidden_states",), ())
        self._own, self._cross = self._caches()
        self._own_pasts, self._own_presents = _pasts(self._own), _presents(self._own)
        self._cross_pasts = _pasts(self._cross)
        self._loop = (
            None
            if merged
            else open_loop(self._later, dict(zip(self._own_pasts, self._own_presents, strict=True)), threads)
        )
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
        """Encode and feed the decoder's start. Logits, float32 [rows, vocab_size].

        Args:
            prompts: the encoder's ids.
            most: tokens that may follow; nothing has to be made ready for them.
        """
        hidden, mask = self._encode(prompts)
        rows = len(prompts)
        self._sources = np.arange(rows)  # which prompt each row answers
        self._about = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden}
        given: dict[str, Value] = {"input_ids": np.full((rows, 1), self._start_id, np.int64), **self._about}
        if _BRANCH in self._first.inputs:
            given[_BRANCH] = _NO
            both = [*self._own, *self._cross]
            given.update(zip(_pasts(both), empty_cache(both, rows), strict=True))
        logits, *made = self._first.run(given, ["logits", *self._own_presents, *_presents(self._cross)])
        self._own_cache, self._cross_cache = made[: len(self._own)], made[len(self._own) :]
        return _as_float(logits)

    def _encode(self, prompts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states [rows, width, d_model], and int64 [rows, width] that is 0 on the padding, on the right."""
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        [hidden] = self._encoder.run({"input_ids": ids, "attention_mask": mask}, ["last_hidden_state"])
        return array_of(hidden), mask

    def step(self, tokens: Ids) -> np.ndarray:
        """One token more for every row; float32 [rows, vocab_size]."""
        logits, *self._own_cache = self._later.run(self._given(tokens), ["logits", *self._own_presents])
        return _as_float(logits)

    def walk(self, tokens: Ids, *, ends: np.ndarray, live: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """See `onnx_decode.Decoder`."""
        if self._loop is None or most == 1 or not self._loop.suits(self._own_cache):
            return no_tokens(len(tokens)), self.step(tokens)
        given = self._given(tokens)
        fed, logits, self._own_cache = self._loop.run(given, self._own_presents, ends=ends, live=live, most=most)
        return fed, logits

    def _given(self, tokens: Ids) -> dict[str, Value]:
        given: dict[str, Value] = {"input_ids": np.array(tokens, np.int64)[:, None]}
        given.update((name, value) for name, value in self._about.items() if name in self._later.inputs)
        if _BRANCH in self._later.inputs:
            given[_BRANCH] = _YES
        given.update(zip(self._own_pasts, self._own_cache, strict=True))
        given.update(zip(self._cross_pasts, self._cross_cache, strict=True))
        return given

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, some perhaps several times."""
        picked = np.asarray(rows)
        if np.array_equal(picked, np.arange(len(self._sources))):
            return
        self._own_cache = rows_of(self._own_cache, picked, self._later.device)
        sources = self._sources[picked]
        if np.array_equal(sources, self._sources):
            return
        self._cross_cache = rows_of(self._cross_cache, picked, self._later.device)
        names = list(self._about)
        self._about = dict(zip(names, rows_of(list(self._about.values()), picked, HOST), strict=True))
        self._sources = sources


def _pasts(entries: Sequence[CacheEntry]) -> list[str]:
    return [entry.past for entry in entries]


def _presents(entries: Sequence[CacheEntry]) -> list[str]:
    return [entry.present for entry in entries]


def _as_float(logits: Value) -> np.ndarray:
    """Of the one position fed, float32 [rows, vocab_size]."""
    return array_of(logits)[:, 0].astype(np.float32, copy=False)


_NO, _YES = np.zeros(1, np.bool_), np.ones(1, np.bool_)
