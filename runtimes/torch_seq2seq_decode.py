"""Running an encoder-decoder model of transformers on the CPU: encode, write greedily or with beams, and score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from contract.runtime import GenerateParams
from runtimes.answer import Answer
from runtimes.logits_rules import TargetFormat
from runtimes.torch_cache_name import cache_name

Ids = Sequence[int]
Pair = tuple[Ids, Ids]

BATCH_TOKENS = 4096  # padded encoder tokens per forward pass
_LOGITS_BYTES = 64 << 20  # of one forward pass of the decoder
_COMPACT_BELOW = 0.75  # share of rows still running under which the finished ones are dropped from the batch


@dataclass(frozen=True)
class Encoded:
    """What the decoder reads: hidden float32 [rows, width, d_model]; mask int64 [rows, width], 0 on padding."""

    hidden: torch.Tensor
    mask: torch.Tensor

    def rows(self, numbers: Sequence[int]) -> Encoded:
        """Some of the rows, perhaps several times, no wider than they need."""
        picked = torch.tensor(numbers)
        width = int(self.mask[picked].sum(1).max())
        return Encoded(self.hidden[picked, :width], self.mask[picked, :width])

    def feed(self) -> dict[str, Any]:
        """The arguments of the model's forward pass."""
        return {"encoder_outputs": (self.hidden,), "attention_mask": self.mask}


@torch.inference_mode()
def encode_sources(model: Any, sources: Sequence[Ids]) -> Encoded:
    """Run the encoder over ids of different lengths; padding stands on the right."""
    ids, mask = _padded(sources)
    hidden = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
    return Encoded(hidden, mask)


def _padded(sources: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [rows, width], twice: ids, and 1 where there is one."""
    width = max(map(len, sources))
    ids = torch.zeros(len(sources), width, dtype=torch.long)
    mask = torch.zeros(len(sources), width, dtype=torch.long)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = torch.tensor(list(source))
        mask[row, : len(source)] = 1
    return ids, mask


@torch.inference_mode()
def decode_steps(model: Any, answers: Sequence[Answer], start_id: int) -> Iterator[None]:
    """Give every answer its next token, yield, and again until all are over. Its prompt is read by the encoder once."""
    from transformers import DynamicCache, EncoderDecoderCache

    for answer in answers:
        answer.start_clock()
    read = encode_sources(model, [answer.prompt for answer in answers])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows = list(answers)
    tokens = [start_id] * len(rows)
    while True:
        logits = model(
            decoder_input_ids=torch.tensor(tokens)[:, None],
            **{cache_name(model): cache},
            use_cache=True,
            **read.feed(),
        ).logits[:, -1]
        found = logits.float().numpy()
        tokens = [answer.take(row) if answer.stop is None else 0 for answer, row in zip(rows, found, strict=True)]
        yield
        running = [row for row, answer in enumerate(rows) if answer.stop is None]
        if not running:
            return
        if len(running) <= _COMPACT_BELOW * len(rows):
            cache.batch_select_indices(torch.tensor(running))
            read = Encoded(read.hidden[running], read.mask[running])
            rows, tokens = [rows[row] for row in running], [tokens[row] for row in running]


@torch.inference_mode()
def beam_search(
    model: Any, sources: Sequence[Ids], params: GenerateParams, target: TargetFormat, stop_ids: frozenset[int]
) -> list[list[int]]:
    """transformers' own beam search.

    Returns:
        Per source the ids behind the decoder's start; those that ended have their stop id last.
    """
    from transformers import GenerationConfig

    ids, mask = _padded(sources)
    most = min(params.max_new_tokens, target.most_tokens)
    settings = GenerationConfig(
        num_beams=params.num_beams,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        repetition_penalty=params.repetition_penalty,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        min_new_tokens=params.min_new_tokens or None,
        max_new_tokens=most,
        do_sample=False,
        decoder_start_token_id=target.start_id,
        forced_bos_token_id=target.forced_bos_id,
        forced_eos_token_id=target.forced_eos_id,
        eos_token_id=sorted(stop_ids),
        pad_token_id=min(stop_ids),
    )
    model.generation_config = settings  # else what the folder's own has would fill what is not set here
    found = model.generate(input_ids=ids, attention_mask=mask)
    return [_until_stop(row[1:], stop_ids) for row in found.tolist()]


def _until_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return list(ids[: end + 1])


def score_window(model: Any, window: Sequence[Pair], parallel: int, start_id: int) -> list[np.ndarray]:
    """Teacher-forced logits of a few pairs; a source that several of them share is encoded once.

    Args:
        model: an encoder-decoder model of transformers, in float32 on the CPU.
        window: (encoder ids, target ids).
        parallel: rows per forward pass at most.
        start_id: what the decoder is fed before the target.

    Returns:
        Per pair float32 [len(target), vocab_size]; row i predicts target[i].
    """
    by_source: dict[tuple[int, ...], list[int]] = {}
    for index, (source, _) in enumerate(window):
        by_source.setdefault(tuple(source), []).append(index)
    found: dict[int, np.ndarray] = {}
    for sources in batches(sorted(by_source, key=len), parallel):
        read = encode_sources(model, sources)
        rows = [(row, index) for row, source in enumerate(sources) for index in by_source[tuple(source)]]
        rows.sort(key=lambda entry: len(window[entry[1]][1]))
        while rows:
            most = _LOGITS_BYTES // (4 * model.config.vocab_size * max(1, len(window[rows[-1][1]][1])))
            taken = rows[-max(1, min(parallel, most)) :]
            rows = rows[: -len(taken)]
            targets = [window[index][1] for _, index in taken]
            logits = _score(model, read.rows([row for row, _ in taken]), targets, start_id)
            found |= {index: logit for (_, index), logit in zip(taken, logits, strict=True)}
    return [found[index] for index in range(len(window))]


def batches(sources: Sequence[Ids], parallel: int) -> Iterator[list[Ids]]:
    """Neighbours that are encoded together: at most `parallel`, and at most BATCH_TOKENS ids with the padding."""
    batch: list[Ids] = []
    for source in sources:
        width = max(len(source), *(len(other) for other in batch)) if batch else len(source)
        if batch and (len(batch) >= parallel or width * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(source)
    if batch:
        yield batch


@torch.inference_mode()
def _score(model: Any, read: Encoded, targets: Sequence[Ids], start_id: int) -> list[np.ndarray]:
    width = max(1, *map(len, targets))
    ids = torch.zeros(len(targets), width, dtype=torch.long)
    for row, target in enumerate(targets):
        fed = [start_id, *target[:-1]]
        ids[row, : len(fed)] = torch.tensor(fed)
    logits = model(decoder_input_ids=ids, use_cache=False, **read.feed()).logits.float().numpy()
    return [logits[row, : len(target)].copy() for row, target in enumerate(targets)]


@contextmanager
def largest_values(model: Any) -> Iterator[dict[str, float]]:
    """While it is open: the largest absolute value at each linear layer and each norm, in or out, by a name for it.

    What is not finite counts as infinite.
    """
    found: dict[str, float] = {}

    def note(name: str, values: Any) -> None:
        first = values[0] if isinstance(values, tuple) else values
        largest = float(first.detach().abs().max())
        found[name] = max(found.get(name, 0.0), math.inf if math.isnan(largest) else largest)

    def hook(name: str) -> Any:
        def noted(module: Any, inputs: Any, output: Any) -> None:
            note(f"{name} (input)", inputs)
            note(f"{name} (output)", output)

        return noted

    watched = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) or name.lower().endswith(("layer_norm", "layernorm"))
    }
    hooks = [module.register_forward_hook(hook(name)) for name, module in watched.items()]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()
