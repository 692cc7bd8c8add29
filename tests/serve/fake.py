"""A runtime written by hand: the whole Runtime interface over a tokenizer of single characters."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams


class FakeRuntime:
    """Answers every prompt with `answer`, a character at a time; a prompt is one id per character."""

    engine = "fake"
    target_length: int | None = None
    vocab_size = 1 << 21
    bos_id: int | None = 1
    stop_ids = frozenset({0})

    def __init__(self, answer: str = " Über 315 crowns — said Mara.", context_length: int = 200) -> None:
        self.answer, self.context_length = answer, context_length
        self.params: list[GenerateParams] = []
        self.prompts: list[str] = []
        self.made = 0  # characters made in all
        self.go = threading.Event()  # cleared: generation waits before every character
        self.go.set()
        self.begun = threading.Event()
        self.fail_after: int | None = None
        self.failure: Exception = RuntimeError("the engine broke down at a secret address")
        self.closed = False
        self._busy = threading.Lock()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """One id per character of every content."""
        if any("\uf8f0" in message.content for message in messages):
            raise AssayError("the text holds the private-use characters U+F8F0 or U+F8F1")
        self.prompts.append("\n".join(f"{message.role}: {message.content}" for message in messages))
        return [1, *self.prompts[-1].encode()]

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """Characters, then the stop id."""
        return [*map(ord, text), 0]

    def encode_raw(self, text: str) -> list[int]:
        """BOS and characters."""
        return [1, *map(ord, text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Characters again."""
        return "".join(map(chr, ids))

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """The last thing that `stream` yields, for each prompt."""
        return [event for prompt in prompts for event in self.stream(prompt, params) if isinstance(event, Completion)]

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """A character at a time; refuses to be used by two threads at once."""
        assert self._busy.acquire(blocking=False), "the runtime is used by two threads at once"
        try:
            self.params.append(params)
            cut = min((at for stop in params.stop if (at := self.answer.find(stop)) >= 0), default=len(self.answer))
            text = self.answer[:cut][: params.max_new_tokens]
            for index, character in enumerate(text):
                self.begun.set()
                assert self.go.wait(timeout=30)
                if self.fail_after == index:
                    raise self.failure
                self.made += 1
                yield character
            yield Completion(tuple(map(ord, text)), text, "length" if len(text) < cut else "eos", len(prompt), 1.5, 2.5)
        finally:
            self._busy.release()

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
        """Zeros."""
        for _, target in pairs:
            yield np.zeros((len(target), self.vocab_size), np.float32)

    def close(self) -> None:
        """Remember it."""
        self.closed = True
