"""The GGUF runtime: llama.cpp through its low-level interface, many sequences side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np

from contract.errors import AssayError
from contract.prompt import Message, completion_ids, prompt_ids
from contract.runtime import Completion, GenerateParams
from runtimes.answer import Answer, Dictated, check_pairs, check_params, check_prompts
from runtimes.gguf_chat import GgufVocab
from runtimes.llama_engine import BATCH_TOKENS, Engine, load_model

_CELLS = 16384  # tokens in the key-value cache, unless one sequence alone needs more
_ALONE_TOKENS = (
    32  # of one sequence are decoded by themselves: of many, llama.cpp takes as many as the shortest has left
)
_WINDOW_BYTES = 256 << 20  # logits held back at once so that several pairs can share a batch

Pair = tuple[Sequence[int], Sequence[int]]


class LlamaCppRuntime:
    """A .gguf file. See `contract.runtime.Runtime`. Not thread-safe: one call at a time."""

    engine = "llama.cpp"
    target_length: int | None = None

    def __init__(self, path: Path, *, threads: int, context_length: int | None, kv_dtype: str, parallel: int) -> None:
        self._model = load_model(path)
        try:
            self._vocab = GgufVocab(self._model, path)
        except AssayError:
            api.llama_model_free(self._model)
            raise
        self._parallel = min(parallel, api.llama_max_parallel_sequences())
        self.chat = self._vocab.chat
        self.vocab_size = self._vocab.size
        self.bos_id = self._vocab.bos_id
        self.stop_ids = self._vocab.stop_ids
        own: int = api.llama_model_n_ctx_train(self._model)
        self.context_length = min(context_length or own, own)
        self._path: _Path | None = None  # what was scored as written last
        border = self.metadata(f"{self.metadata('general.architecture')}.rope.scaling.original_context_length")
        self._engine = Engine(
            self._model,
            threads=threads,
            kv_f32=kv_dtype == "f32",
            vocab_size=self.vocab_size,
            border=int(border) if border else None,
        )

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text, or None."""
        return self._vocab.metadata(key)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids, ready for the answer."""
        return prompt_ids(self.chat, messages, self._vocab.tokenize, self.bos_id)

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of `text` as the answer, closing stop id included."""
        return completion_ids(self.chat, messages, text, self._vocab.tokenize, self.bos_id)

    def encode_raw(self, text: str) -> list[int]:
        """`text` with the special tokens the file asks for."""
        return self._vocab.tokenize_raw(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens left out, spaces kept."""
        return self._vocab.decode(ids)

    def _answers(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Answer]:
        check_params(params)
        check_prompts(prompts, self.context_length, self.vocab_size)
        return [
            Answer(prompt, params, end_ids=self._vocab.end_ids, context_length=self.context_length, decode=self.decode)
            for prompt in prompts
        ]

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order; a finished sequence makes room for the next prompt at once."""
        answers = self._answers(prompts, params)
        for _ in self._steps(answers):
            pass
        return [answer.completion() for answer in answers]

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion."""
        [answer] = self._answers([prompt], params)
        known, self._path = (self._path if self._is_on_path(answer) else None), None  # once: a second is written anew
        for _ in self._along_path(known, answer, answer.ids) if known else self._steps([answer]):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    def _steps(self, answers: Sequence[Answer | Dictated]) -> Iterator[None]:
        """Continuous batching: a batch holds one token of every running answer, then as much prompt as fits."""
        if not answers:
            return
        longest = max(answer.most_tokens for answer in answers)
        sequences = min(self._parallel, len(answers), max(1, _CELLS // longest))
        self._engine.begin(sequences, longest)
        waiting = deque(answers)
        free = list(range(sequences))[::-1]
        running: dict[int, _Running] = {}
        while waiting or running:
            while waiting and free:
                answer = waiting.popleft()
                answer.start_clock()
                running[free.pop()] = _Running(answer)
            batch = _Batch()
            for sequence, entry in sorted(running.items(), key=lambda item: len(item[1].feed)):  # single tokens first
                room = BATCH_TOKENS - len(batch.tokens)
                now, entry.feed = entry.feed[:room], entry.feed[room:]
                for token in now:
                    batch.add(token, entry.position, sequence, output=False)
                    entry.position += 1
                entry.row = batch.ask() if now and not entry.feed else None
            logits = self._engine.decode(batch.tokens, batch.positions, batch.sequences, batch.outputs)
            for sequence, entry in list(running.items()):
                if entry.row is None:
                    continue
                entry.feed = [entry.answer.take(logits[entry.row])]
                if entry.answer.stop is not None:
                    self._engine.forget(sequence)
                    del running[sequence]
                    free.append(sequence)
            yield

    def score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        """For each (prompt, target), in order: float32 logits [len(target), vocab_size]."""
        check_pairs(pairs, self.context_length, self.vocab_size)
        return self._score(pairs)

    def score_as_written(self, pairs: Sequence[Pair], params: GenerateParams) -> Iterator[np.ndarray]:
        """As `score`, in the steps in which `stream` writes. See `contract.runtime.ScoresAsWritten`."""
        check_pairs(pairs, self.context_length, self.vocab_size)
        return (self._as_written(prompt, target, params) for prompt, target in pairs)

    def _as_written(self, prompt: Sequence[int], target: Sequence[int], params: GenerateParams) -> np.ndarray:
        """Steps that an earlier target of the same prompt took as well are not taken again: they give the same bits."""
        if not target:
            return np.zeros((0, self.vocab_size), np.float32)
        answer = Dictated(prompt, target, params, self.context_length - len(prompt))
        if not self._is_on_path(answer):
            self._path = _Path(self._engine, prompt, answer.most_tokens) if self._engine.can_go_back else None
        along = self._along_path(self._path, answer, target) if self._path else self._steps([answer])
        for _ in along:
            pass
        return answer.logits

    def _is_on_path(self, answer: Answer | Dictated) -> bool:
        """Is the answer's prompt in the cache, with room for what is to come?"""
        path = self._path
        same = path is not None and path.holds and list(path.prompt) == list(answer.prompt)
        return same and self._engine.has_room(1, answer.most_tokens)

    def _along_path(self, path: _Path, answer: Answer | Dictated, ids: Sequence[int]) -> Iterator[None]:
        """As `_steps` of this answer alone. `ids` are its tokens; of an answer that is chosen they grow with it."""
        answer.start_clock()
        count = 0
        while answer.stop is None:
            answer.take(path.logits_behind(ids[:count]))
            count += 1
            yield

    def _score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(pairs):
            end, longest, size_bytes = start, 0, 0
            while end < len(pairs) and end - start < self._parallel:
                prompt, target = pairs[end]
                crossed = self._engine.beyond(longest) != self._engine.beyond(len(prompt) + len(target))
                longest = max(longest, len(prompt) + len(target))
                size_bytes += len(target) * self.vocab_size * 4
                if end > start and (longest * (end + 1 - start) > _CELLS or size_bytes > _WINDOW_BYTES or crossed):
                    break
                end += 1
            yield from self._score_window(pairs[start:end])
            start = end

    def _score_window(self, window: Sequence[Pair]) -> list[np.ndarray]:
        """Prompts but for their last tokens first, shared by neighbours of one prompt; then what predicts targets."""
        self._engine.begin(len(window), max(len(prompt) + len(target) for prompt, target in window))
        heads, tails = _Batch(), _Batch()
        shared: list[tuple[int, int]] = []
        owner = 0
        for sequence, (prompt, target) in enumerate(window):
            if sequence and list(prompt) == list(window[owner][0]):
                shared.append((owner, sequence))
            else:
                owner = sequence
                for position, token in enumerate(prompt[:-1]):
                    heads.add(token, position, sequence, output=False)
            for offset, token in enumerate([prompt[-1], *target[:-1]] if target else []):
                tails.add(token, len(prompt) - 1 + offset, sequence, output=True)
        self._run(heads, BATCH_TOKENS, BATCH_TOKENS)
        for source, sequence in shared:
            self._engine.share(source, sequence)
        logits = self._run(tails, self._engine.max_outputs, _ALONE_TOKENS)
        ends = np.cumsum([len(target) for _, target in window])
        return [logits[end - len(target) : end] for end, (_, target) in zip(ends, window, strict=True)]

    def _run(self, batch: _Batch, most: int, alone: int) -> np.ndarray:
        """Decode pieces of `most` tokens at most, of `alone` where a sequence ends; the outputs' logits, one array."""
        parts = [np.zeros((0, self.vocab_size), np.float32)]
        start, count = 0, len(batch.tokens)
        for end in range(1, count + 1):
            over = end == count or (end - start >= alone and batch.sequences[end] != batch.sequences[end - 1])
            if not over and end - start < most:
                continue
            part = slice(start, end)
            parts.append(
                self._engine.decode(
                    batch.tokens[part], batch.positions[part], batch.sequences[part], batch.outputs[part]
                )
            )
            start = end
        return np.concatenate(parts)

    def close(self) -> None:
        """Free context and model."""
        self._engine.free_context()
        if self._model is not None:
            api.llama_model_free(self._model)
            self._model = None


class _Path:
    """A prompt, read as `_steps` reads it, and the one way on from it that the cache holds at a time."""

    def __init__(self, engine: Engine, prompt: Sequence[int], length: int) -> None:
        """`length`: cells for prompt and answer."""
        engine.begin(1, length)
        self._engine, self._begun, self.prompt = engine, engine.begun, prompt
        self._fed: list[int] = []
        self._rows: list[np.ndarray] = []  # one more than tokens were fed

    @property
    def holds(self) -> bool:
        """Is the cache still as this left it?"""
        return self._engine.begun == self._begun

    def logits_behind(self, tokens: Sequence[int]) -> np.ndarray:
        """Float32 [vocab_size], after the prompt and `tokens`, each fed alone; what was fed before is not fed again."""
        if not self._rows:
            self._rows = [self._read()]
        if self._fed[: len(tokens)] == list(tokens):
            return self._rows[len(tokens)]
        same = next(
            (at for at, (fed, token) in enumerate(zip(self._fed, tokens, strict=False)) if fed != token),
            min(len(self._fed), len(tokens)),
        )
        if same < len(self._fed):
            self._engine.forget(0, len(self.prompt) + same)
            del self._fed[same:], self._rows[same + 1 :]
        for token in tokens[same:]:
            [row] = self._engine.decode([token], [len(self.prompt) + len(self._fed)], [0], [True])
            self._fed.append(token)
            self._rows.append(row)
        return self._rows[-1]

    def _read(self) -> np.ndarray:
        """Pieces as large as a batch, and the logits of the last token alone."""
        logits = np.zeros((0, 0), np.float32)
        for start in range(0, len(self.prompt), BATCH_TOKENS):
            piece = self.prompt[start : start + BATCH_TOKENS]
            last = start + len(piece) == len(self.prompt)
            outputs = [False] * (len(piece) - 1) + [last]
            logits = self._engine.decode(piece, range(start, start + len(piece)), [0] * len(piece), outputs)
        row: np.ndarray = logits[0]
        return row


class _Batch:
    """Tokens to decode together."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.sequences: list[int] = []
        self.outputs: list[bool] = []
        self._rows = 0

    def add(self, token: int, position: int, sequence: int, *, output: bool) -> None:
        self.tokens.append(token)
        self.positions.append(position)
        self.sequences.append(sequence)
        self.outputs.append(output)

    def ask(self) -> int:
        """Ask for the logits of the last token added; returns their row."""
        self.outputs[-1] = True
        self._rows += 1
        return self._rows - 1


class _Running:
    """An answer that has a sequence: what is to be fed to it next, and where."""

    def __init__(self, answer: Answer | Dictated) -> None:
        self.answer = answer
        self.feed = list(answer.prompt)
        self.position = 0
        self.row: int | None = None
