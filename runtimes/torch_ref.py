"""The reference runtime: plain torch in float32 on the CPU, which every other engine is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.model_folder import chat_format, context_of, stop_ids
from contract.prompt import Message, completion_ids, hf_tokenize, prompt_ids
from contract.runtime import Completion, GenerateParams
from runtimes.answer import Answer, check_pairs, check_params, check_prompts
from runtimes.hf_tokenizer import load_tokenizer
from runtimes.torch_aside import Aside
from runtimes.torch_decode import ATTENTION, decode_steps
from runtimes.torch_load import load_adapter, load_merged
from runtimes.torch_score import Pair, score_window, shares_prompts

_WINDOW_BYTES = 256 << 20  # logits held back at once so that neighbours of like length can share a forward pass
_WINDOW_PAIRS = 32

Item = TypeVar("Item")


class TorchRuntime:
    """A model folder, or a base with an adapter on it. See `contract.runtime.Runtime`."""

    engine = "torch"
    target_length: int | None = None

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
        capped = getattr(self._model.config, "attn_logit_softcapping", None) is not None
        self._model.set_attn_implementation("eager" if capped else ATTENTION)  # only eager attention applies the cap
        self.shares_prompts = shares_prompts(self._model.config)
        self._tokenizer = load_tokenizer(loaded.folder)
        self._tokenize = hf_tokenize(self._tokenizer)
        self._anchor = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        self.chat = chat_format(loaded.folder)
        self.vocab_size: int = self._model.get_output_embeddings().weight.shape[0]
        own = context_of(loaded.base_folder)
        self.context_length = min(context_length or own, own)
        self.bos_id: int | None = self._tokenizer.bos_token_id
        eos = self._tokenizer.eos_token_id
        declared = stop_ids(loaded.folder) or stop_ids(loaded.base_folder)
        self.stop_ids = frozenset(declared) | (frozenset() if eos is None else {eos})

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids, ready for the answer."""
        return prompt_ids(self.chat, messages, self._tokenize, self.bos_id)

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of `text` as the answer, closing stop id included."""
        return completion_ids(self.chat, messages, text, self._tokenize, self.bos_id)

    def encode_raw(self, text: str) -> list[int]:
        """`text` with the tokenizer's default special tokens."""
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` as a continuation, its leading space kept (SentencePiece decoders drop a text's first)."""
        whole = self._plain_decode([*self._anchor, *ids])
        return whole[len(self._plain_decode(self._anchor)) :]

    def _plain_decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _answers(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Answer]:
        check_params(params)
        check_prompts(prompts, self.context_length, self.vocab_size)
        return [
            Answer(prompt, params, end_ids=self.stop_ids, context_length=self.context_length, decode=self.decode)
            for prompt in prompts
        ]

    def _batches(self, order: Sequence[Item]) -> list[Sequence[Item]]:
        """As few as may be, of like size: a token for three rows costs hardly less than for eight."""
        count = max(1, -(-len(order) // self._parallel))
        ends = [len(order) * number // count for number in range(count + 1)]
        return [order[start:end] for start, end in pairwise(ends) if start < end]

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length run together."""
        answers = self._answers(prompts, params)
        order = sorted(answers, key=lambda answer: len(answer.prompt))
        for batch in self._batches(order):
            for _ in decode_steps(self._model, batch):
                pass
        return [answer.completion() for answer in answers]

    def write_and_score(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], params: GenerateParams
    ) -> Iterator[tuple[int, Completion, np.ndarray, np.ndarray]]:
        """See `contract.runtime.WritesAndScores`."""
        if not self.shares_prompts:
            raise AssayError("this model's layers do not all see the whole text, so prompts cannot be shared")
        check_pairs(list(zip(prompts, targets, strict=True)), self.context_length, self.vocab_size)
        answers = self._answers(prompts, params)
        order = sorted(range(len(answers)), key=lambda index: len(prompts[index]))
        for batch in self._batches(order):
            together = [answers[index] for index in batch]
            aside = Aside(together, [targets[index] for index in batch])
            for _ in decode_steps(self._model, together, aside):
                pass
            for index, given, written in zip(batch, aside.given, aside.written, strict=True):
                yield index, answers[index].completion(), given, written

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion."""
        [answer] = self._answers([prompt], params)
        for _ in decode_steps(self._model, [answer]):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    def score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        """For each (prompt, target), in order: float32 logits [len(target), vocab_size]."""
        check_pairs(pairs, self.context_length, self.vocab_size)
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
            yield from score_window(self._model, pairs[start:end], self._parallel)
            start = end

    def close(self) -> None:
        """Free the model."""
        self._model = None
