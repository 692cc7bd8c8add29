"""Teacher-forced logits from a transformers model; the targets of one prompt share a single pass over it.

A row of a batch is a prompt and then its targets, one behind another. Each target's positions begin where the prompt
ends, and a mask keeps it from seeing the other targets, so that every target stands as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from contract.model_config import ropes
from contract.model_folder import plain_causal

Pair = tuple[Sequence[int], Sequence[int]]

_BATCH_TOKENS = 4096  # padded tokens per forward pass
_MOST_MASKED = 4096  # tokens of a row that gets a mask of its own; longer rows hold one target and need none


@dataclass
class _Row:
    """A prompt and the targets behind it: `ids` to feed, and for every target where its tail begins."""

    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    targets: list[tuple[int, int, int]] = field(default_factory=list)  # index of the pair, start of its tail, length

    def add(self, index: int, target: Sequence[int]) -> None:
        self.targets.append((index, len(self.ids), len(target)))
        self.ids += target[:-1]


def score_window(model: Any, window: Sequence[Pair], parallel: int) -> list[np.ndarray]:
    """Logits of a few pairs.

    Args:
        model: a causal language model of transformers, in float32 on the CPU.
        window: (prompt ids, target ids); neighbours with the same prompt share it.
        parallel: rows per forward pass at most.

    Returns:
        Per pair float32 [len(target), vocab_size]; row i predicts target[i].
    """
    border = rope_border(model.config)
    beyond = max(len(prompt) + len(target) for prompt, target in window) > border
    rows = _rows(window, plain_causal(model.config) and not beyond)
    if max(len(row.ids) for row in rows) > border:
        parallel = 1
    found: dict[int, np.ndarray] = {}
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (len(row.ids) * (len(batch) + 1) > _BATCH_TOKENS or len(batch) >= parallel):
            found |= _score(model, batch)
            batch = []
        batch.append(row)
    found |= _score(model, batch)
    return [found[index] for index in range(len(window))]


def shares_prompts(config: Any) -> bool:
    """May several targets stand behind one prompt, whatever their length? By the model's transformers config."""
    return plain_causal(config) and rope_border(config) == math.inf


def rope_border(config: Any) -> float:
    """LongRoPE turns the positions of a whole batch otherwise as soon as one of them reaches this length."""
    made = config.to_dict()
    kinds = [rope for rope in ropes(made).values() if rope.kind == "longrope"]
    borders = [rope.scaling.get("original_max_position_embeddings", made["max_position_embeddings"]) for rope in kinds]
    return float(min(borders, default=math.inf))


def _rows(window: Sequence[Pair], may_share: bool) -> list[_Row]:
    rows: list[_Row] = []
    for index, (prompt, target) in enumerate(window):
        row = rows[-1] if rows else None
        if (
            row is None
            or not may_share
            or len(row.ids) + len(target) > _MOST_MASKED
            or list(row.prompt) != list(prompt)
        ):
            row = _Row(prompt, list(prompt))
            rows.append(row)
        row.add(index, target)
    return rows


@torch.inference_mode()
def _score(model: Any, batch: Sequence[_Row]) -> dict[int, np.ndarray]:
    """Padding stands on the right, where a causal model cannot see it."""
    width = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for number, row in enumerate(batch):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
    first = min(len(row.prompt) for row in batch) - 1  # the first position that predicts a target
    inputs: dict[str, torch.Tensor] = {}
    if any(len(row.targets) > 1 for row in batch):
        inputs = {"attention_mask": _mask(batch, width), "position_ids": _positions(batch, width)}
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=torch.arange(first, width), **inputs).logits.float()
    found = {}
    for number, row in enumerate(batch):
        last_of_prompt = logits[number, len(row.prompt) - 1 - first]
        for index, start, length in row.targets:
            block = np.empty((length, logits.shape[2]), np.float32)
            if length:
                block[0] = last_of_prompt.numpy()
                block[1:] = logits[number, start - first : start - first + length - 1].numpy()
            found[index] = block
    return found


def _mask(batch: Sequence[_Row], width: int) -> torch.Tensor:
    """Added to the products, float32 [rows, 1, width, width]: 0 where a position may look, else very low."""
    low = torch.finfo(torch.float32).min
    mask = torch.full((width, width), low).triu(1).repeat(len(batch), 1, 1, 1)
    for number, row in enumerate(batch):
        for _, start, length in row.targets[1:]:
            mask[number, 0, start : start + max(0, length - 1), len(row.prompt) : start] = low
    return mask


def _positions(batch: Sequence[_Row], width: int) -> torch.Tensor:
    """int64 [rows, width]: every target goes on where the prompt ends."""
    positions = torch.arange(width).repeat(len(batch), 1)
    for number, row in enumerate(batch):
        for _, start, length in row.targets[1:]:
            tail = max(0, length - 1)
            positions[number, start : start + tail] = torch.arange(len(row.prompt), len(row.prompt) + tail)
    return positions
