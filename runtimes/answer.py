"""One answer in the making: which token comes next, when it is over, and what of its text can be shown already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from contract.errors import AssayError
from contract.runtime import Completion, GenerateParams

Decode = Callable[[Sequence[int]], str]
_BROKEN = "\ufffd"  # what a decoder writes for the first bytes of a character whose other bytes are still to come


class Answer:
    """Collects the tokens of one completion. Depends on its own prompt and the params alone, not on its neighbours."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: GenerateParams,
        *,
        end_ids: frozenset[int],
        context_length: int,
        decode: Decode,
    ) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.stop: Literal["eos", "length"] | None = None
        self._params, self._decode = params, decode
        self._end_ids = frozenset[int]() if params.ignore_stop else end_ids
        self._most = min(params.max_new_tokens, context_length - len(prompt))
        self._random = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._shown = 0
        self._text: str | None = None  # set where a stop string cut it
        self._started = time.perf_counter()
        self._first_token_ms = self._total_ms = 0.0

    @property
    def most_tokens(self) -> int:
        """Cells of the key-value cache it can come to need, prompt included."""
        return len(self.prompt) + self._most

    def start_clock(self) -> None:
        """Times count from here."""
        self._started = time.perf_counter()

    def take(self, logits: np.ndarray) -> int:
        """Choose the next token from float32 logits [vocab_size]; `stop` is set when the answer is over."""
        token = self._choose(logits)
        self._total_ms = (time.perf_counter() - self._started) * 1000
        if self._first_token_ms == 0.0:
            self._first_token_ms = self._total_ms
        if token in self._end_ids:
            self.stop = "eos"
            return token
        self.ids.append(token)
        if self._params.stop and not self._params.ignore_stop:
            text = self._decode(self.ids)
            cuts = [text.find(stop) for stop in self._params.stop if stop in text]
            if cuts:
                self.stop, self._text = "eos", text[: min(cuts)]
                return token
        if len(self.ids) >= self._most:
            self.stop = "length"
        return token

    def piece(self) -> str:
        """The text that became certain since the last call: no half characters, no possible start of a stop string."""
        text = self._decode(self.ids) if self._text is None else self._text
        if self.stop is None:
            text = text.rstrip(_BROKEN)
            held = [size for stop in self._params.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
            text = text[: len(text) - max(held, default=0)]
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece

    def completion(self) -> Completion:
        """The finished answer. Where a stop string cut the text, `ids` still has the tokens that spelled it."""
        assert self.stop is not None, "the answer is not finished"
        text = self._decode(self.ids) if self._text is None else self._text
        return Completion(tuple(self.ids), text, self.stop, len(self.prompt), self._first_token_ms, self._total_ms)

    def _choose(self, logits: np.ndarray) -> int:
        if not np.isfinite(logits.max()):
            raise AssayError(
                "the model's logits are not finite, so nothing can be generated",
                hint="its weights are damaged or overflowed: export it again, in another dtype",
            )
        if self._random is None:
            return int(logits.argmax())
        scaled = (logits.astype(np.float64) - float(logits.max())) / self._params.temperature
        order = np.argsort(-scaled, kind="stable")
        weights = np.exp(scaled[order])
        summed = np.cumsum(weights)
        # nucleus: the fewest tokens whose probabilities reach top_p together (Holtzman et al. 2020)
        kept = int(np.searchsorted(summed, self._params.top_p * summed[-1])) + 1
        kept = min(kept, len(summed))
        drawn = np.searchsorted(summed[:kept], self._random.random() * summed[kept - 1], side="right")
        return int(order[min(int(drawn), kept - 1)])


def check_params(params: GenerateParams) -> None:
    """Raise where the params make no sense."""
    if params.max_new_tokens < 1:
        raise AssayError("max_new_tokens must be at least 1", got=str(params.max_new_tokens))
    if params.temperature < 0 or not 0 < params.top_p <= 1:
        raise AssayError(
            "temperature must not be negative and top_p must be over 0 and at most 1",
            got=f"temperature={params.temperature}, top_p={params.top_p}",
        )
    if "" in params.stop:
        raise AssayError("a stop string must not be empty")


def check_prompts(prompts: Sequence[Sequence[int]], context_length: int, vocab_size: int) -> None:
    """Raise where a prompt is empty, leaves no room for one new token, or has ids the model does not know."""
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise AssayError("the prompt is empty", where=f"prompt {index}")
        if len(prompt) >= context_length:
            raise AssayError(
                "the prompt leaves no room in the context for one new token",
                where=f"prompt {index}",
                expected=f"at most {context_length - 1} tokens",
                got=f"{len(prompt)} tokens",
                hint="shorten the document, or load the model with a longer context",
            )
        _check_ids(prompt, vocab_size, f"prompt {index}")


def check_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context_length: int, vocab_size: int) -> None:
    """Raise where a pair's prompt is empty, prompt and target exceed the context, or the model does not know an id."""
    for index, (prompt, target) in enumerate(pairs):
        if not prompt:
            raise AssayError("the prompt is empty, so nothing predicts the first target", where=f"pair {index}")
        if len(prompt) + len(target) > context_length:
            raise AssayError(
                "prompt and target together exceed the context",
                where=f"pair {index}",
                expected=f"at most {context_length} tokens",
                got=f"{len(prompt)} + {len(target)} tokens",
                hint="shorten the document, or load the model with a longer context",
            )
        _check_ids([*prompt, *target], vocab_size, f"pair {index}")


def _check_ids(ids: Sequence[int], vocab_size: int, where: str) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise AssayError(
            "an id is outside the model's vocabulary",
            where=where,
            expected=f"0 to {vocab_size - 1}",
            got=str(wrong),
            hint="were the ids made with another model's tokenizer?",
        )
