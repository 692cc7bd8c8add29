"""The ONNX runtime, for causal and encoder-decoder folders: onnxruntime, tokenizers and numpy; no transformers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from contract.artifact import Artifact
from contract.errors import AssayError, listed
from contract.model_folder import chat_format, context_of, is_encoder_decoder, stop_ids
from contract.prompt import ChatFormat, Message, completion_ids, prompt_ids
from contract.runtime import Completion, GenerateParams
from contract.seq2seq import Seq2SeqFormat, read_format, source_ids, target_ids
from runtimes.answer import Answer, check_pairs, check_params, check_prompts
from runtimes.beam import BeamSearch
from runtimes.hf_vocab import HfVocab
from runtimes.logits_rules import LogitsRules, TargetFormat, read_target_format
from runtimes.onnx_causal import CausalDecoder
from runtimes.onnx_decode import search, write
from runtimes.onnx_file import CAUSAL, graph_files, refuse_short_tables, refuse_unlisted_weights
from runtimes.onnx_provider import chosen_provider, refuse_inexact_int8
from runtimes.onnx_score import Pair, score_as_written, score_causal, score_pairs, score_seq2seq
from runtimes.onnx_seq2seq import Seq2SeqDecoder
from runtimes.onnx_sessions import open_graph, quantizes_activations
from runtimes.seq2seq_inputs import check_source_pairs, check_sources

_BATCH_TOKENS = 4096  # padded prompt tokens that run together

Ids = Sequence[int]


class OnnxRuntime:
    """A folder of ONNX graphs as Optimum names them. See `contract.runtime.Runtime`. One call at a time.

    Raises:
        AssayError: a graph or a file of the tokenizer is missing or broken.
        NoEngineError: the execution provider is not there.
    """

    engine = "onnxruntime"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        provider: str | None,
        context_length: int | None,
        parallel: int,
    ) -> None:
        folder = artifact.folder
        device = chosen_provider(provider)
        refuse_inexact_int8(artifact, device)
        self._vocab = HfVocab(folder)
        refuse_unlisted_weights(artifact)
        own = context_of(folder)
        self.context_length = min(context_length or own, own)
        self.bos_id = self._vocab.bos_id
        self.stop_ids = frozenset(stop_ids(folder))
        self._decoder: CausalDecoder | Seq2SeqDecoder
        self._target: TargetFormat | None = None
        self._format: Seq2SeqFormat | None = None
        self.chat: ChatFormat | None = None
        if is_encoder_decoder(folder):
            self._target = read_target_format(folder, own)
            self._format = read_format(
                partial(self._vocab.tokenize, control=False), self._vocab.tokenize_raw, self._target.start_id
            )
            self._decoder = Seq2SeqDecoder(folder, device, threads, self._target.start_id)
        else:
            self.chat = chat_format(folder)
            self.stop_ids |= frozenset() if self._vocab.eos_id is None else {self._vocab.eos_id}
            self._decoder = CausalDecoder(open_graph(_causal_graph(folder), device, threads), threads)
        if not self.stop_ids:
            raise AssayError("nothing ends an answer", where=str(folder / "config.json"), expected="eos_token_id")
        self.target_length = self._target.most_tokens if self._target else None
        self.vocab_size = self._decoder.vocab_size
        self._check_ids(folder)
        refuse_short_tables(folder, own)
        # one scale for all that runs together: a neighbour, or a later token, would change the logits
        self.token_by_token = any(quantizes_activations(path) for path in graph_files(folder))
        self._parallel = 1 if self.token_by_token else parallel

    def _check_ids(self, folder: Path) -> None:
        """Raise where an id that the configuration names is none of the graph's."""
        named = {f"eos_token_id {token}": token for token in self.stop_ids}
        if self._target:
            named["decoder_start_token_id"] = self._target.start_id
            forced = {"forced_bos_token_id": self._target.forced_bos_id}
            forced["forced_eos_token_id"] = self._target.forced_eos_id
            named |= {name: token for name, token in forced.items() if token is not None}
        wrong = {name: token for name, token in named.items() if not 0 <= token < self.vocab_size}
        if wrong:
            raise AssayError(
                "the configuration names ids that the model does not have",
                where=str(folder),
                expected=f"0 to {self.vocab_size - 1}",
                got=listed(f"{name}: {token}" for name, token in wrong.items()),
                hint="are config.json and generation_config.json of another model?",
            )

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids, ready for the answer; the encoder's ids where there is one."""
        if self._format is not None:
            return source_ids(self._format, messages, self._vocab.tokenize)
        return prompt_ids(self._chat, messages, self._vocab.tokenize, self.bos_id)

    def encode_completion(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of `text` as the answer, closing stop id included."""
        if self._format is not None:
            return target_ids(self._format, text, self._vocab.tokenize)
        return completion_ids(self._chat, messages, text, self._vocab.tokenize, self.bos_id)

    @property
    def _chat(self) -> ChatFormat:
        assert self.chat is not None, "an encoder-decoder model has no chat format"
        return self.chat

    def encode_raw(self, text: str) -> list[int]:
        """`text` with the tokenizer's default special tokens."""
        return self._vocab.tokenize_raw(text)

    def decode(self, ids: Ids) -> str:
        """The text of `ids`: as a continuation, its leading space kept; as a whole text where a decoder wrote it."""
        return self._vocab.decode_whole(ids) if self._target else self._vocab.decode(ids)

    def _check(self, prompts: Sequence[Ids], params: GenerateParams) -> None:
        check_params(params, beams=True)
        (check_sources if self._target else check_prompts)(prompts, self.context_length, self.vocab_size)

    def generate(self, prompts: Sequence[Ids], params: GenerateParams) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length run together."""
        self._check(prompts, params)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done: dict[int, Completion] = {}
        for batch in self._batches(prompts, order, params.num_beams):
            chosen = [prompts[index] for index in batch]
            made = self._search(chosen, params) if params.num_beams > 1 else self._write(chosen, params)
            done |= dict(zip(batch, made, strict=True))
        return [done[index] for index in range(len(prompts))]

    def _batches(self, prompts: Sequence[Ids], order: Sequence[int], beams: int) -> Iterator[list[int]]:
        """Neighbours in the order given, which is by length."""
        batch: list[int] = []
        for index in order:
            crowded = len(prompts[index]) * (len(batch) + 1) > _BATCH_TOKENS
            if batch and (crowded or (len(batch) + 1) * beams > self._parallel):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _answer(self, prompt: Ids, params: GenerateParams) -> Answer:
        return Answer(
            prompt,
            params,
            end_ids=self.stop_ids,
            context_length=self.context_length,
            decode=self.decode,
            target=self._target,
        )

    def _write(self, prompts: Sequence[Ids], params: GenerateParams) -> list[Completion]:
        answers = [self._answer(prompt, params) for prompt in prompts]
        for _ in write(self._decoder, answers):
            pass
        return [answer.completion() for answer in answers]

    def _search(self, prompts: Sequence[Ids], params: GenerateParams) -> list[Completion]:
        began_s = time.perf_counter()
        mosts = [self._most(prompt, params) for prompt in prompts]
        rules = [
            LogitsRules(params, self.stop_ids, [self._target.start_id] if self._target else prompt, self._target, most)
            for prompt, most in zip(prompts, mosts, strict=True)
        ]
        searches = [BeamSearch(params, rule, self.stop_ids, most) for rule, most in zip(rules, mosts, strict=True)]
        search(self._decoder, prompts, searches, params.num_beams, max(mosts))
        took_ms = (time.perf_counter() - began_s) * 1000
        done = []
        for prompt, rule, one in zip(prompts, rules, searches, strict=True):
            ended = one.ids[-1] in self.stop_ids
            ids = one.ids[:-1] if ended else one.ids
            stop: Literal["eos", "length"] = "eos" if ended and not rule.forces_end(len(ids)) else "length"
            done.append(Completion(ids, self.decode(ids), stop, len(prompt), took_ms, took_ms))
        return done

    def _most(self, prompt: Ids, params: GenerateParams) -> int:
        left = self._target.most_tokens if self._target else self.context_length - len(prompt)
        return min(params.max_new_tokens, left)

    def stream(self, prompt: Ids, params: GenerateParams) -> Iterator[str | Completion]:
        """Pieces of text, then the Completion; of a beam search all text at once."""
        self._check([prompt], params)
        if params.num_beams > 1:
            [found] = self._search([prompt], params)
            yield found.text
            yield found
            return
        answer = self._answer(prompt, params)
        for _ in write(self._decoder, [answer]):
            if piece := answer.piece():
                yield piece
        yield answer.completion()

    def score(self, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
        """For each (prompt, target), in order: float32 logits [len(target), vocab_size]."""
        decoder = self._decoder
        if isinstance(decoder, Seq2SeqDecoder):
            assert self._target is not None
            check_source_pairs(pairs, self.context_length, self._target.most_tokens, self.vocab_size)
            batch = partial(score_seq2seq, decoder)
        else:
            check_pairs(pairs, self.context_length, self.vocab_size)
            batch = partial(score_causal, decoder)
        if self.token_by_token:
            batch = partial(score_as_written, decoder)
        return score_pairs(pairs, self.vocab_size, self._parallel, batch)

    def score_as_written(self, pairs: Sequence[Pair], params: GenerateParams) -> Iterator[np.ndarray]:
        """As `score`, in the steps in which `stream` writes, beams apart. See `contract.runtime.ScoresAsWritten`."""
        if self._target:
            check_source_pairs(pairs, self.context_length, self._target.most_tokens, self.vocab_size)
        else:
            check_pairs(pairs, self.context_length, self.vocab_size)
        return score_pairs(pairs, self.vocab_size, 1, partial(score_as_written, self._decoder))

    def close(self) -> None:
        """Free the model; harmless when repeated."""
        vars(self).pop("_decoder", None)


def _causal_graph(folder: Path) -> Path:
    path = folder / CAUSAL
    others = sorted(file.name for file in folder.glob("decoder*.onnx"))
    if not path.is_file() and others:
        raise AssayError(
            "the model is split into graphs as Optimum did before 1.14",
            where=str(folder),
            expected=CAUSAL,
            got=listed(others),
            hint="export it again: assay export onnx MODEL --out DIR",
        )
    return path
