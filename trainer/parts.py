"""Splits a batch into parts of a few tokens, so that what the backward pass needs is kept for one part at a time.

A causal layer keeps about forty floats per token and unit of its width until its gradient is known; in a model of 135
million parameters that is 2.4 MB per token. The loss is a sum over tokens, so the gradients of the parts add up to the
batch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_TOKENS = 768  # padded tokens of a part on a CPU; matrix products of so many rows are as quick as larger ones


def parts_of(batch: dict[str, torch.Tensor], most_tokens: int = MOST_TOKENS) -> list[dict[str, torch.Tensor]]:
    """Rows of like length together, without the padding that none of them needs.

    Args:
        batch: tensors [rows, tokens] padded on the right; `labels` are -100 where nothing is learned, `attention_mask`
            is 0 over padding. Of an encoder-decoder, labels and decoder_input_ids have a length of their own.
        most_tokens: of a part; a row that is longer is a part of its own.

    Returns:
        Parts with the same names, every row in one of them, the shortest first.
    """
    read = batch["attention_mask"].sum(1)
    written = ((batch["labels"] != -100) * _numbers(batch["labels"])).amax(1)
    pairs = "decoder_input_ids" in batch
    tokens = (read + written if pairs else read).tolist()
    groups: list[list[int]] = []
    for row in sorted(range(len(tokens)), key=lambda row: tokens[row]):  # a group's longest is its last
        if groups and (len(groups[-1]) + 1) * tokens[row] <= most_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    widths = {"labels": written, "decoder_input_ids": written} if pairs else {}
    return [
        {name: tensor[rows, : int(widths.get(name, read)[rows].max())] for name, tensor in batch.items()}
        for rows in groups
    ]


def _numbers(labels: torch.Tensor) -> torch.Tensor:
    """int64 [tokens]: 1, 2, …"""
    import torch

    return torch.arange(1, labels.shape[1] + 1, device=labels.device)
