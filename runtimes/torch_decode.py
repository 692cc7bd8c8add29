"""Decoding many sequences with a transformers model on a CPU without copying the key-value cache at every step.

transformers' own cache is concatenated anew for each token, and its attention repeats keys and values for every query
head of a group. Here the cache grows in place, and the query heads of a group are the rows of one product. What is
summed is the same; only the order of sums in a matrix product may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from contract.model_folder import plain_causal
from runtimes.answer import Answer
from runtimes.torch_aside import Aside

ATTENTION = "grouped_sdpa"
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
    """One layer's keys and values, [rows, heads, cells, head_dim], in a buffer with room for `most` cells."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self._most = most
        self._used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (
                states.new_empty(*states.shape[:2], self._most, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        start, self._used = self._used, self._used + key_states.shape[2]
        self.keys[:, :, start : self._used] = key_states
        self.values[:, :, start : self._used] = value_states
        return self.keys[:, :, : self._used], self.values[:, :, : self._used]

    def get_seq_length(self) -> int:
        return self._used

    def shorten(self, cells: int) -> None:
        """Forget what stands behind the first `cells` cells."""
        self._used = cells


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
    width = max(len(answer.prompt) for answer in answers)
    most = width + max(answer.most_new_tokens for answer in answers)
    most = max(most, width + aside.most_tokens) if aside else most
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    seen = torch.zeros(len(answers), most, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, width - len(answer.prompt) :] = torch.tensor(list(answer.prompt))
        seen[row, width - len(answer.prompt) :] = 1
    positions = (seen[:, :width].cumsum(1) - 1).clamp(min=0)
    own_mask = plain_causal(model.config)  # made once, for all layers
    cache = DynamicCache(config=model.config)
    if own_mask:
        cache.layers = [_InPlaceLayer(most) for _ in cache.layers]
    hidden = (1.0 - seen[:, None, None].float()) * torch.finfo(torch.float32).min
    rows: list[Answer] = list(answers)
    used = width
    mask = seen[:, :used]
    while True:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        found = logits.float().numpy()
        if aside:
            if used == width:
                aside.score(model, cache, hidden, positions[:, -1:], found, width)
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
        ids = torch.tensor(tokens)[:, None]
        mask = hidden[..., :used] if own_mask else seen[:, :used]
        positions = positions[:, -1:] + 1
