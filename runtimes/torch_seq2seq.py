"""Encoder-decoder models (T5, BART …) in plain torch, float32 on the CPU: the reference for every other engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.model_folder import context_of, stop_ids
from contract.prompt import Message, hf_tokenize
from contract.runtime import Completion, GenerateParams
from contract.seq2seq import read_format, source_ids, target_ids
from runtimes.answer import Answer, check_params
from runtimes.hf_tokenizer import load_tokenizer
from runtimes.logits_rules import read_target_format
from runtimes.seq2seq_inputs import check_source_pairs, check_sources
from runtimes.torch_load import load_adapter, load_merged
from runtimes.torch_seq2seq_decode import Pair, batches, beam_search, decode_steps, largest_values, score_window

_WINDOW_BYTES = 256 << 20  # logits held back at once so that neighbours of like length can share a forward pass
_WINDOW_PAIRS = 32


class TorchSeq2SeqRuntime:
    """A model folder, or a base with an adapter on it. See `contract.runtime.Runtime`; a prompt goes to the encoder."""

    engine = "torch"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        base_weights: str | None,
        merge_dtype: str | None,
        context_length: int | None,
        parallel: int,
    ) -> None:
        torch.set_num_threads(threads)
        loaded = (
            load_adapter(artifact, base_weights=base_weights, merge_dtype=merge_dtype)
            if artifact.kind == "adapter"
            else load_merged(artifact, base_weights=base_weights)
        )
        self._model, self._parallel = loaded.model, parallel
        self._tokenizer = load_tokenizer(loaded.folder)
        self._tokenize = hf_tokenize(self._tokenizer)
        self.vocab_size: int = self._model.get_output_embeddings().weight.shape[0]
        own = context_of(loaded.base_folder)
        self.context_length = min(context_length or own, own)
        self.target_length: int | None = own
        self._target = read_target_format(loaded.base_folder, own)
        self._format = read_format(lambda text: self._tokenize(text, False), self.encode_raw, self._target.start_id)
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.stop_ids = frozenset(stop_ids(loaded.base_folder))
        if not self.stop_ids:
            raise AssayError(
                "nothing ends an answer", where=str(loaded.base_folder / "config.json"), expected="eos_token_id"
            )

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The encoder's ids."""
        return source_ids(self._format, messages, self._tokenize)

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids the decoder is to write for `text`, closing stop id included."""
        return target_ids(self._format, text, self._tokenize)

    def encode_raw(self, text: str) -> list[int]:
        """`text` with the tokenizer's default special tokens."""
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, which is a whole text: SentencePiece's mark before its first word is no space."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _answers(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Answer]:
        return [
            Answer(
                prompt,
                params,
                end_ids=self.stop_ids,
                context_length=self.context_length,
                decode=self.decode,
                target=self._target,
            )
            for prompt in prompts
        ]

    def _check(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> None:
        check_params(params, beams=True)
        check_sources(prompts, self.context_length, self.vocab_size)

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length run together."""
        self._check(prompts, params)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done: list[Completion] = []
        for batch in batches([prompts[index] for index in order], self._parallel):
            done += self._beams(batch, params) if params.num_beams > 1 else self._greedy(batch, params)
        by_index = dict(zip(order, done, strict=True))
        return [by_index[index] for index in range(len(prompts))]

    def _greedy(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        answers = self._answers(prompts, params)
        for _ in decode_steps(self._model, answers, self._target.start_id):
            pass
        return [answer.completion() for answer in answers]

    def _beams(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        started = time.perf_counter()
        found = beam_search(self._model, prompts, params, self._target, self.stop_ids)
        took_ms = (time.perf_counter() - started) * 1000
        most = min(params.max_new_tokens, self._target.most_tokens)
        done = []
        for prompt, ids in zip(prompts, found, strict=True):
            ended = ids[-1] in self.stop_ids
            forced = len(ids) == most and self._target.forced_eos_id is not None
            ids = ids[:-1] if ended else ids
            stop: Literal["eos", "length"] = "eos" if ended and not forced else "length"
            done.append(Completion(tuple(ids), self.decode(ids), stop, len(prompt), took_ms, took_ms))
        return done

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion; of a beam search all at once."""
        self._check([prompt], params)
        if params.num_beams > 1:
            [found] = self._beams([prompt], params)
            yield found.text
            yield found
            return
        [answer] = self._answers([prompt], params)
        for _ in decode_steps(self._model, [answer], self._target.start_id):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    def score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        """For each (encoder ids, target), in order: float32 logits [len(target), vocab_size]."""
        check_source_pairs(pairs, self.context_length, self._target.most_tokens, self.vocab_size)
        return self._score(pairs)

    def _score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(pairs):
            end, size_bytes = start, 0
            while end < len(pairs) and end - start < _WINDOW_PAIRS:
                size_bytes += len(pairs[end][1]) * self.vocab_size * 4
                if end > start and size_bytes > _WINDOW_BYTES:
                    break
                end += 1
            yield from score_window(self._model, pairs[start:end], self._parallel, self._target.start_id)
            start = end

    def largest_activation(self, pairs: Sequence[Pair]) -> tuple[float, str]:
        """The largest absolute value that flows in or out of a linear layer or a norm while `pairs` are scored.

        Returns:
            The value and the layer's name; infinite where one is not finite.
        """
        with largest_values(self._model) as found:
            for pair in pairs:
                list(self.score([pair]))
        where = max(found, key=lambda name: found[name])
        return found[where], where

    def close(self) -> None:
        """Free the model."""
        self._model = None
