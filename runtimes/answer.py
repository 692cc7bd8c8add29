"""One answer in the making: which token comes next, when it is over, and what of its text can be shown already."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from contract.errors import AssayError, ModelError
from contract.runtime import Completion, GenerateParams
from runtimes.logits_rules import LogitsRules, TargetFormat, nucleus

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
        target: TargetFormat | None = None,
    ) -> None:
        """`target`: of an encoder-decoder model, whose answer takes no room from the prompt."""
        self.prompt = prompt
        self.ids: list[int] = []
        self.stop: Literal["eos", "length"] | None = None
        self._params, self._decode = params, decode
        self._end_ids = frozenset[int]() if params.ignore_stop else end_ids
        self._most = min(params.max_new_tokens, target.most_tokens if target else context_length - len(prompt))
        before = [target.start_id] if target else prompt
        self.rules = LogitsRules(params, self._end_ids, before, target, self._most)
        self._random = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._shown = 0
        self._text: str | None = None  # set where a stop string cut it
        self._started = time.perf_counter()
        self._first_token_ms = self._total_ms = 0.0

    @property
    def most_tokens(self) -> int:
        """Cells of the key-value cache it can come to need, prompt included."""
        return len(self.prompt) + self._most

    @property
    def most_new_tokens(self) -> int:
        """Where it ends at the latest."""
        return self._most

    @property
    def end_ids(self) -> frozenset[int]:
        """What ends it."""
        return self._end_ids

    @property
    def greedy_steps(self) -> int:
        """How many tokens may be fed, each but the first the likeliest, before `take` must choose; at least 1."""
        if self._random is not None:
            return 1
        return min(self.rules.idle_for(len(self.ids)) + 1, self._most - len(self.ids))

    def start_clock(self) -> None:
        """Times count from here."""
        self._started = time.perf_counter()

    def take(self, logits: np.ndarray) -> int:
        """Choose the next token from float32 logits [vocab_size]; `stop` is set when the answer is over."""
        return self.put(self._choose(logits))

    def put(self, token: int) -> int:
        """The next token is this one, which is returned."""
        self._total_ms = (time.perf_counter() - self._started) * 1000
        if self._first_token_ms == 0.0:
            self._first_token_ms = self._total_ms
        if token in self._end_ids:
            self.stop = "length" if self.rules.forces_end(len(self.ids)) else "eos"
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
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise ModelError(
                "the model's logits are not finite, so nothing can be generated",
                hint="its weights are damaged or overflowed: export it again, in another dtype",
            )
        if self._random is None and self.rules.idle_for(len(self.ids)):
            return likeliest
        scores = self.rules.apply(logits, self.ids)
        if self._random is None:
            return int(scores.argmax())
        order, summed = nucleus(scores, self._params.temperature, self._params.top_p)
        drawn = np.searchsorted(summed, self._random.random() * summed[-1], side="right")
        return int(order[min(int(drawn), len(order) - 1)])


class Dictated:
    """An answer whose tokens are given: goes through the steps of one that is chosen, and keeps the logits it sees."""

    def __init__(self, prompt: Sequence[int], target: Sequence[int], params: GenerateParams, most: int) -> None:
        """`target` has at least one id; `most`: new tokens that the context leaves room for."""
        self.prompt = prompt
        self.stop: Literal["length"] | None = None
        self._target = target
        self._most = max(len(target), min(params.max_new_tokens, most))
        self._rows: list[np.ndarray] = []

    @property
    def most_tokens(self) -> int:
        """Cells that would be made ready for an answer to this prompt."""
        return len(self.prompt) + self._most

    @property
    def logits(self) -> np.ndarray:
        """Float32 [len(target), vocab_size]; row i is what target[i] would have been chosen from."""
        return np.stack(self._rows)

    def start_clock(self) -> None:
        """Nothing is timed."""

    def take(self, logits: np.ndarray) -> int:
        """The next given token; `stop` is set when there is no other."""
        self._rows.append(logits)
        if len(self._rows) == len(self._target):
            self.stop = "length"
        return self._target[len(self._rows) - 1]


def check_params(params: GenerateParams, *, beams: bool = False) -> None:
    """Raise where the params make no sense, or (without `beams`) where they ask for beam search."""
    if params.max_new_tokens < 1:
        raise AssayError("max_new_tokens must be at least 1", got=str(params.max_new_tokens))
    if not 0 <= params.temperature < math.inf or not 0 < params.top_p <= 1:
        raise AssayError(
            "temperature must be a number, not negative, and top_p over 0 and at most 1",
            got=f"temperature={params.temperature}, top_p={params.top_p}",
        )
    if "" in params.stop:
        raise AssayError("a stop string must not be empty")
    if not 0 < params.repetition_penalty < math.inf or min(params.no_repeat_ngram_size, params.min_new_tokens) < 0:
        raise AssayError(
            "repetition_penalty must be over 0, no_repeat_ngram_size and min_new_tokens not negative",
            got=f"{params.repetition_penalty}, {params.no_repeat_ngram_size}, {params.min_new_tokens}",
        )
    if params.num_beams != 1:
        _check_beams(params, beams)


def _check_beams(params: GenerateParams, beams: bool) -> None:
    if params.num_beams < 1 or not math.isfinite(params.length_penalty):
        raise AssayError(
            "num_beams must be at least 1, and length_penalty a number",
            got=f"{params.num_beams}, {params.length_penalty}",
        )
    if not beams:
        raise AssayError(
            "this engine does no beam search",
            got=f"num_beams={params.num_beams}",
            hint="set generate.num_beams to 1, or run an ONNX artifact",
        )
    if params.temperature > 0 or params.stop or params.ignore_stop:
        raise AssayError(
            "beam search goes neither with sampling nor with stop strings nor with ignored stop tokens",
            got=f"temperature={params.temperature}, stop={params.stop}, ignore_stop={params.ignore_stop}",
        )


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
        check_ids(prompt, vocab_size, f"prompt {index}")


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
        check_ids([*prompt, *target], vocab_size, f"pair {index}")


def check_ids(ids: Sequence[int], vocab_size: int, where: str) -> None:
    """Raise where the model does not know an id."""
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise AssayError(
            "an id is outside the model's vocabulary",
            where=where,
            expected=f"0 to {vocab_size - 1}",
            got=str(wrong),
            hint="were the ids made with another model's tokenizer?",
        )
