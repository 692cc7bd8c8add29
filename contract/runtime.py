"""The Runtime protocol: what every engine that runs an artifact offers, and the types it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from contract.errors import AssayError, did_you_mean
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
    # as transformers' GenerationConfig has them
    num_beams: int = 1
    length_penalty: float = 1.0  # beams only
    early_stopping: bool = False  # beams only
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0

    @property
    def plain_greedy(self) -> bool:
        """Is every token the likeliest one by the model's own logits?"""
        rules = self.repetition_penalty == 1 and not self.no_repeat_ngram_size and not self.min_new_tokens
        return self.num_beams == 1 and self.temperature == 0 and rules

    def beyond_greedy(self) -> dict[str, Any]:
        """What is set otherwise than for plain greedy decoding, but for the length."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "max_new_tokens" and getattr(self, field.name) != field.default
        }

    @classmethod
    def recorded(cls, details: Mapping[str, Any]) -> GenerateParams:
        """How the summaries of an artifact are written, from its details; the defaults where nobody recorded any.

        Raises:
            AssayError: a setting that does not exist here, or of another type.
        """
        given = details.get("generate") or {}
        if not isinstance(given, Mapping):
            raise AssayError("the manifest records a wrong value", where="details.generate", got=repr(given)[:80])
        known = {field.name: field.default for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise AssayError(
                    f'the manifest records a way to generate that is not known here: "{name}"',
                    expected=", ".join(known),
                    hint=did_you_mean(name, list(known)) or "was it made by a newer Assay?",
                )
            wanted = (int, float) if isinstance(known[name], float) else type(known[name])
            if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(known[name], bool):
                where = f"details.generate.{name}"
                raise AssayError("the manifest records a wrong value", where=where, got=repr(value))
        return cls(**given)

    def within(self, target_length: int | None) -> GenerateParams:
        """The same for a model that writes no more than `target_length` tokens (None: it has no such limit)."""
        return self if target_length is None else replace(self, max_new_tokens=min(self.max_new_tokens, target_length))


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

    engine: str  # "torch", "llama.cpp" or "onnxruntime"
    vocab_size: int
    context_length: int
    # encoder-decoder models: the most tokens of an answer, which takes no room from the prompt; None: they share it
    target_length: int | None
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
            AssayError: a prompt leaves no room in the context for one new token, or the engine does not do what the
                params ask for.
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


@runtime_checkable
class WritesAndScores(Protocol):
    """A runtime that can write completions and score other targets behind the same prompts at once."""

    shares_prompts: bool  # of this model

    def write_and_score(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], params: GenerateParams
    ) -> Iterator[tuple[int, Completion, np.ndarray, np.ndarray]]:
        """In any order: index, what `generate` writes, and two blocks of float32 logits as `score` gives them.

        The first block is of the target, [len(target), vocab_size]; the second of the completion, one row for each of
        its tokens and one for the stop id where it ended by itself.

        Raises:
            AssayError: as `generate` and `score`; or the model cannot (`shares_prompts`).
        """
        ...


@runtime_checkable
class ScoresAsWritten(Protocol):
    """A runtime that can score a target in the very steps in which a server would write it.

    `score` may take many columns at once, for which engines have other kernels than for one.
    """

    def score_as_written(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], params: GenerateParams
    ) -> Iterator[np.ndarray]:
        """As `score`, one pair at a time: the prompt is read as `stream` reads it, then each target id is fed alone.

        Where a target is what `stream` writes, row i is bit for bit what its id i was chosen from.

        Args:
            pairs: (prompt ids, target ids).
            params: how long an answer may become: room is made for it as `stream` makes it.

        Raises:
            AssayError: as `score`.
        """
        ...
