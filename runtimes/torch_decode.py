"""Decoding many sequences with a transformers model on a CPU without copying the key-value cache at every step.

transformers' own cache is concatenated anew for each token, and its attention repeats keys and values for every query
head of a group. Here the cache grows in place, and the query heads of a group are the rows of one product; prompts are
read a few at a time, without padding to the longest of all. What is summed is the same; only the order of sums in a
matrix product may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from contract.model_folder import plain_causal
from runtimes.answer import Answer
from runtimes.torch_aside import Aside
from runtimes.torch_cache_name import cache_name

ATTENTION = "grouped_sdpa"
_READ_TOKENS = 1024  # padded tokens of prompts that are read together; matrix products gain nothing by more
_COMPACT_BELOW = 0.75  # share of rows still running under which the finished ones are dropped from the batch


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention; for one query position, without repeating keys and values.

    Args:
        module: the attention layer.
        query: [rows, heads, positions, head_dim].
        key: [rows, key-value heads, cells, head_dim].
        value: like `key`.
        attention_mask: [rows, 1, positions, cells] or None, as transformers hands it over.
        dropout: 0 except in training.
        scaling: of the products; None: 1/√head_dim.
        is_causal: as in transformers.
        **kwargs: passed on.

    Returns:
        [rows, positions, heads, head_dim], and None for the weights, which are not kept.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if query.shape[2] != 1 or groups == 1 or dropout:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    rows, heads, _, size = query.shape
    mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    found = torch.nn.functional.scaled_dot_product_attention(
        query.view(rows, heads // groups, groups, size), key, value, attn_mask=mask, scale=scaling
    )
    return found.reshape(rows, 1, heads, size), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _InPlaceLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, cells, head_dim], in a buffer with room for `most` cells.

    While `reading` is set, what comes is a few rows' prompts and what stands behind them: only the prompts' cells are
    kept, and the layer looks at nothing else.
    """

    def __init__(self, rows: int, most: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self._rows, self._most = rows, most
        self._used = 0
        self.reading: tuple[slice, int] | None = None  # rows, cells

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (  # zeros: what is hidden is multiplied by 0, and must be a number
                states.new_zeros(self._rows, states.shape[1], self._most, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        if self.reading:
            rows, cells = self.reading
            self.keys[rows, :, :cells] = key_states[:, :, :cells]
            self.values[rows, :, :cells] = value_states[:, :, :cells]
            return key_states, value_states
        start, self._used = self._used, self._used + key_states.shape[2]
        self.keys[:, :, start : self._used] = key_states
        self.values[:, :, start : self._used] = value_states
        return self.keys[:, :, : self._used], self.values[:, :, : self._used]

    def get_seq_length(self) -> int:
        return 0 if self.reading else self._used

    def go_on_at(self, cell: int) -> None:
        """The prompts are read; what comes next is kept from this cell on."""
        self.reading, self._used = None, cell


@torch.inference_mode()
def decode_steps(model: Any, answers: Sequence[Answer], aside: Aside | None = None) -> Iterator[None]:
    """Give every answer its next token, yield, and again until all are over.

    Args:
        model: a causal language model of transformers, in float32.
        answers: what is written.
        aside: targets to score from the same prompts; only where `plain_causal` holds.
    """
    for answer in answers:
        answer.start_clock()
    lengths = torch.tensor([len(answer.prompt) for answer in answers])
    used = int(lengths.max())
    most = used + max(answer.most_new_tokens for answer in answers)
    own_mask = plain_causal(model.config)  # made once, for all layers
    cache = DynamicCache(config=model.config)
    if own_mask:
        cache.layers = [_InPlaceLayer(len(answers), most) for _ in cache.layers]
        found = _read_apart(model, cache, answers, aside)
        seen = (torch.arange(most) < lengths[:, None]) | (torch.arange(most) >= used)
    else:
        seen = torch.arange(-used, most - used) >= -lengths[:, None]
        found = _read_together(model, cache, answers, seen[:, :used])
    hidden = (~seen)[:, None, None] * torch.finfo(torch.float32).min
    positions = lengths[:, None]
    rows: list[Answer] = list(answers)
    while True:
        if aside:
            aside.keep(rows, found)
        tokens = [answer.take(row) if answer.stop is None else 0 for answer, row in zip(rows, found, strict=True)]
        yield
        running = [row for row, answer in enumerate(rows) if answer.stop is None]
        if not running:
            return
        if len(running) <= _COMPACT_BELOW * len(rows):
            cache.batch_select_indices(torch.tensor(running))
            positions, seen, hidden = positions[running], seen[running], hidden[running]
            rows, tokens = [rows[row] for row in running], [tokens[row] for row in running]
        used += 1
        logits = model(
            input_ids=torch.tensor(tokens)[:, None],
            attention_mask=hidden[..., :used] if own_mask else seen[:, :used].long(),
            position_ids=positions,
            **{cache_name(model): cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits
        found = logits[:, -1].float().numpy()
        positions = positions + 1


def _read_apart(model: Any, cache: Any, answers: Sequence[Answer], aside: Aside | None) -> np.ndarray:
    """Prompts, and behind each what is to be scored, a few of like length at a time: hardly any padding, and no mask.

    Returns:
        Float32 [answers, vocab_size], behind the prompts. Those are in the cache, each from cell 0 on.
    """
    texts = [[*answer.prompt, *(aside.fed(row) if aside else ())] for row, answer in enumerate(answers)]
    found: list[np.ndarray] = []
    start = 0
    while start < len(answers):
        end, width = start, 0
        while (end < len(answers) and max(width, len(texts[end])) * (end + 1 - start) <= _READ_TOKENS) or end == start:
            width = max(width, len(texts[end]))
            end += 1
        ids = torch.zeros(end - start, width, dtype=torch.long)
        for row, text in enumerate(texts[start:end]):
            ids[row, : len(text)] = torch.tensor(text)
        prompts = [len(answer.prompt) for answer in answers[start:end]]
        ends = torch.tensor([[len(text)] for text in texts[start:end]])
        for layer in cache.layers:
            layer.reading = slice(start, end), max(prompts)
        first = min(prompts) - 1  # the first column whose logits are asked for
        logits = (
            model(
                input_ids=ids,
                position_ids=torch.minimum(torch.arange(width), ends - 1),  # padding does not make a text longer
                **{cache_name(model): cache},
                use_cache=True,
                logits_to_keep=torch.arange(first, width),
            )
            .logits.float()
            .numpy()
        )
        for row, prompt in enumerate(prompts):
            behind = logits[row, prompt - 1 - first :]
            found.append(behind[0].copy())
            if aside:
                aside.give(start + row, behind)
        start = end
    for layer in cache.layers:
        layer.go_on_at(max(len(answer.prompt) for answer in answers))
    return np.stack(found)


def _read_together(model: Any, cache: Any, answers: Sequence[Answer], seen: torch.Tensor) -> np.ndarray:
    """All prompts in one pass, padded on the left; `seen`, bool [answers, width], tells them from padding."""
    ids = torch.zeros(*seen.shape, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, seen.shape[1] - len(answer.prompt) :] = torch.tensor(list(answer.prompt))
    logits = model(
        input_ids=ids,
        attention_mask=seen.long(),
        position_ids=(seen.long().cumsum(1) - 1).clamp(min=0),
        **{cache_name(model): cache},
        use_cache=True,
        logits_to_keep=1,
    ).logits
    found: np.ndarray = logits[:, -1].float().numpy()
    return found
