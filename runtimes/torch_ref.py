"""The reference runtime: plain torch in float32 on the CPU, which every other engine is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from contract.artifact import Artifact
from contract.errors import AssayError
from contract.model_folder import chat_format, stop_ids
from contract.prompt import Message, completion_ids, hf_tokenize, prompt_ids
from contract.runtime import Completion, GenerateParams
from runtimes.answer import Answer, check_pairs, check_params, check_prompts
from runtimes.torch_load import Loaded, context_of, load_adapter, load_merged

_WINDOW_BYTES = 256 << 20  # logits held back at once so that neighbours of like length can share a forward pass
_WINDOW_PAIRS = 32
_BATCH_TOKENS = 4096  # padded tokens per forward pass

Pair = tuple[Sequence[int], Sequence[int]]


class TorchRuntime:
    """A model folder, or a base with an adapter on it. See `contract.runtime.Runtime`."""

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
        self._tokenizer = _tokenizer(loaded)
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

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length run together."""
        answers = self._answers(prompts, params)
        order = sorted(answers, key=lambda answer: len(answer.prompt))
        for start in range(0, len(order), self._parallel):
            for _ in self._steps(order[start : start + self._parallel]):
                pass
        return [answer.completion() for answer in answers]

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion."""
        [answer] = self._answers([prompt], params)
        for _ in self._steps([answer]):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    @torch.inference_mode()
    def _steps(self, answers: list[Answer]) -> Iterator[None]:
        """Give every answer its next token, yield, and again until all are over; finished rows are dropped."""
        from transformers import DynamicCache

        for answer in answers:
            answer.start_clock()
        width = max(len(answer.prompt) for answer in answers)
        ids = torch.zeros(len(answers), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, answer in enumerate(answers):
            ids[row, width - len(answer.prompt) :] = torch.tensor(list(answer.prompt))
            mask[row, width - len(answer.prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        while True:
            logits = (
                self._model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                .logits[:, -1]
                .float()
                .numpy()
            )
            tokens = [answer.take(row) for answer, row in zip(answers, logits, strict=True)]
            yield
            rows = [row for row, answer in enumerate(answers) if answer.stop is None]
            if not rows:
                return
            if len(rows) < len(answers):
                cache.batch_select_indices(torch.tensor(rows))
                mask, positions = mask[rows], positions[rows]
                answers = [answers[row] for row in rows]
            ids = torch.tensor([[tokens[row]] for row in rows])
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1

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
            yield from self._score_window(pairs[start:end])
            start = end

    def _score_window(self, window: Sequence[Pair]) -> list[np.ndarray]:
        """Pairs of like length share a forward pass; the results are in the window's own order."""
        found: dict[int, np.ndarray] = {}
        batch: list[int] = []
        order = sorted(range(len(window)), key=lambda index: len(window[index][0]) + len(window[index][1]))
        for index in order:
            length = len(window[index][0]) + len(window[index][1])
            if batch and (length * (len(batch) + 1) > _BATCH_TOKENS or len(batch) >= self._parallel):
                found |= self._score_batch(window, batch)
                batch = []
            batch.append(index)
        found |= self._score_batch(window, batch)
        return [found[index] for index in range(len(window))]

    @torch.inference_mode()
    def _score_batch(self, window: Sequence[Pair], batch: Sequence[int]) -> dict[int, np.ndarray]:
        """Padding stands on the right, where a causal model cannot see it: no mask is needed."""
        rows = [[*window[index][0], *window[index][1]][:-1] or list(window[index][0]) for index in batch]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        first = min(len(window[index][0]) for index in batch) - 1  # the first position that predicts a target
        logits = self._model(
            input_ids=ids, use_cache=False, logits_to_keep=torch.arange(first, ids.shape[1])
        ).logits.float()
        found = {}
        for number, index in enumerate(batch):
            prompt, target = window[index]
            begin = len(prompt) - 1 - first
            found[index] = logits[number, begin : begin + len(target)].numpy().copy()
        return found

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _tokenizer(loaded: Loaded) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(loaded.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise AssayError(
            "the tokenizer cannot be loaded",
            where=str(loaded.folder),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
        ) from None
