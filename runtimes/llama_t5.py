"""T5 from a .gguf: llama.cpp encodes a prompt once, then decodes; the decoder reads what was encoded last."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np

from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams
from contract.seq2seq import read_format, source_ids, target_ids
from runtimes.answer import Answer, Dictated, check_params
from runtimes.gguf_chat import GgufVocab
from runtimes.llama_engine import load_model
from runtimes.logits_rules import TargetFormat
from runtimes.seq2seq_inputs import check_source_pairs, check_sources

Pair = tuple[Sequence[int], Sequence[int]]
ARCHITECTURE = "t5"  # general.architecture of the files that run here
_OUTPUT_BYTES = 64 << 20  # logits of one batch


class LlamaT5Runtime:
    """A T5 .gguf. See `contract.runtime.Runtime`; a prompt goes to the encoder. Not thread-safe: one call at a time."""

    engine = "llama.cpp"

    def __init__(self, path: Path, *, threads: int, context_length: int | None, kv_dtype: str) -> None:
        self._model = load_model(path, encoder=True)
        self._context: Any = None
        try:
            self._vocab = GgufVocab(self._model, path)
            self.vocab_size = self._vocab.size
            self.bos_id = self._vocab.bos_id
            self.stop_ids = self._vocab.stop_ids
            own: int = api.llama_model_n_ctx_train(self._model)
            self.context_length = min(context_length or own, own)
            self.target_length: int | None = own
            start: int = api.llama_model_decoder_start_token(self._model)
            self._target = TargetFormat(start, own)
            self._format = read_format(lambda text: self._vocab.tokenize(text, False), self.encode_raw, start)
            self._spaced = self._vocab.metadata("tokenizer.ggml.add_space_prefix") == "true"
            self._most_outputs = max(1, min(own, _OUTPUT_BYTES // (4 * self.vocab_size)))
            self._context = self._new_context(own, threads, kv_dtype)
        except AssayError:
            self.close()
            raise
        self._encoded: tuple[int, ...] = ()

    def _new_context(self, own: int, threads: int, kv_dtype: str) -> Any:
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(self.context_length, own)  # an encoder sees all at once
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = api.GGML_TYPE_F32 if kv_dtype == "f32" else api.GGML_TYPE_F16
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = False
        params.no_perf = True
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise AssayError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens", hint="shorter documents, or more memory"
            )
        return context

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text, or None."""
        return self._vocab.metadata(key)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The encoder's ids."""
        return source_ids(self._format, messages, self._vocab.tokenize)

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids the decoder is to write for `text`, closing stop id included."""
        return target_ids(self._format, text, self._vocab.tokenize)

    def encode_raw(self, text: str) -> list[int]:
        """`text` with the special tokens the file asks for."""
        return self._vocab.tokenize_raw(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, which is a whole text: the space that is put before any is taken off again."""
        text = self._vocab.decode(ids)
        return text.removeprefix(" ") if self._spaced else text

    def _check(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> None:
        check_params(params)
        check_sources(prompts, self.context_length, self.vocab_size)

    def _answer(self, prompt: Sequence[int], params: GenerateParams) -> Answer:
        return Answer(
            prompt,
            params,
            end_ids=self._vocab.end_ids,
            context_length=self.context_length,
            decode=self.decode,
            target=self._target,
        )

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order, one after the other."""
        self._check(prompts, params)
        answers = [self._answer(prompt, params) for prompt in prompts]
        for answer in answers:
            for _ in self._steps(answer):
                pass
        return [answer.completion() for answer in answers]

    def stream(self, prompt: Sequence[int], params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion."""
        self._check([prompt], params)
        answer = self._answer(prompt, params)
        for _ in self._steps(answer):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    def _steps(self, answer: Answer | Dictated) -> Iterator[None]:
        answer.start_clock()
        self._encode(answer.prompt)
        token, position = self._target.start_id, 0
        while answer.stop is None:
            token = answer.take(self._decode([token], position)[0])
            position += 1
            yield

    def score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        """For each (encoder ids, target), in order: float32 logits [len(target), vocab_size]."""
        check_source_pairs(pairs, self.context_length, self._target.most_tokens, self.vocab_size)
        return (self._score(source, target) for source, target in pairs)

    def score_as_written(self, pairs: Sequence[Pair], params: GenerateParams) -> Iterator[np.ndarray]:
        """As `score`, in the steps in which `stream` writes. See `contract.runtime.ScoresAsWritten`."""
        check_source_pairs(pairs, self.context_length, self._target.most_tokens, self.vocab_size)
        return (self._as_written(source, target, params) for source, target in pairs)

    def _as_written(self, source: Sequence[int], target: Sequence[int], params: GenerateParams) -> np.ndarray:
        if not target:
            return np.zeros((0, self.vocab_size), np.float32)
        answer = Dictated(source, target, params, self._target.most_tokens)
        for _ in self._steps(answer):
            pass
        return answer.logits

    def _score(self, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
        self._encode(source)
        fed = [self._target.start_id, *target[:-1]][: len(target)]
        parts = [np.zeros((0, self.vocab_size), np.float32)]
        for start in range(0, len(fed), self._most_outputs):
            parts.append(self._decode(fed[start : start + self._most_outputs], start))
        return np.concatenate(parts)

    def _encode(self, source: Sequence[int]) -> None:
        """Let the decoder read `source`, which is computed only if it is another than before, and forget its steps."""
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        if tuple(source) == self._encoded:
            return
        self._encoded = ()
        self._run(api.llama_encode, source, 0)
        self._encoded = tuple(source)

    def _decode(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """Float32 logits [len(tokens), vocab_size] of the decoder fed with `tokens` from `position` on."""
        self._run(api.llama_decode, tokens, position)
        shape = (len(tokens), self.vocab_size)
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), shape).copy()

    def _run(self, function: Any, tokens: Sequence[int], position: int) -> None:
        count = len(tokens)
        sequence = ctypes.pointer(ctypes.c_int32(0))
        batch = api.llama_batch(
            n_tokens=count,
            token=(ctypes.c_int32 * count)(*tokens),
            embd=None,
            pos=(ctypes.c_int32 * count)(*range(position, position + count)),
            n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * count)(*[sequence] * count),
            logits=(ctypes.c_int8 * count)(*[1] * count),
        )
        code = function(self._context, batch)
        if code != 0:
            raise RuntimeError(f"{function.__name__} returned {code}")

    def close(self) -> None:
        """Free context and model."""
        if self._context is not None:
            api.llama_free(self._context)
            self._context = None
        if self._model is not None:
            api.llama_model_free(self._model)
            self._model = None
