"""The Runtime protocol: what every engine that runs an artifact offers, and the types it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from contract.prompt import Message

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class GenerateParams:
    """How to generate. The default is greedy decoding, which is what evaluation uses."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 means greedy
    top_p: float = 1.0
    seed: int = 0
    ignore_stop: bool = False  # for speed figures at a fixed output length only
    stop: tuple[str, ...] = ()  # further stop strings, cut off from the text


@dataclass(frozen=True)
class Completion:
    """One generated text. `ids` has no stop token; `stop` says why it ended; times are wall time in milliseconds.

    Where several prompts were generated together the times are of the whole batch, so speed is measured one by one.
    """

    ids: tuple[int, ...]
    text: str
    stop: Literal["eos", "length"]
    prompt_tokens: int
    first_token_ms: float
    total_ms: float


class Runtime(Protocol):
    """An artifact, loaded. Made by `runtimes.load_runtime`."""

    engine: str  # "torch" or "llama.cpp"
    vocab_size: int
    context_length: int
    bos_id: int | None
    stop_ids: frozenset[int]  # every id that ends generation

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids: template, BOS and all, ready for the answer to follow."""
        ...

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of `text` as the answer to `messages`, its closing stop id included."""
        ...

    def encode_raw(self, text: str) -> list[int]:
        """`text` without a template, with the tokenizer's own default special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens left out, spaces kept."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order, many at once.

        Raises:
            AssayError: a prompt leaves no room in the context for one new token.
        """
        ...

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text as they are made (never half a character), then the Completion."""
        ...

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[np.ndarray]:
        """For each (prompt ids, target ids), float32 logits [len(target), vocab_size], in order; row i is of target[i].

        Raises:
            AssayError: prompt and target together exceed the context.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
