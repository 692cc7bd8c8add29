"""Cross-entropy on completions, in float32, with logits only for the columns that need them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from trainer.tokenize import TokenRow

# Rows and padded tokens of one validation batch: large enough to be quick, small enough for the logits.
_VALIDATION_ROWS = 32
_VALIDATION_TOKENS = 8192


def takes_columns(model: Any) -> bool:
    """Can this model's forward be told which columns need logits?"""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def summed_nll(model: torch.nn.Module, batch: dict[str, torch.Tensor], *, columns_only: bool) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over every label that is not -100, as a float32 scalar.

    Args:
        model: a causal language model.
        batch: input_ids and labels, each int64 [rows, tokens], padded on the right.
        columns_only: leave out the logits in front of the first supervised column: most of a summarization prompt.
    """
    import torch

    labels = batch["labels"][:, 1:]
    first = int((labels != -100).any(dim=0).nonzero()[0])
    inputs = {"input_ids": batch["input_ids"], "use_cache": False}  # no mask: padding on the right is never looked at
    if columns_only:
        columns = torch.arange(first, labels.shape[1], device=labels.device)
        logits = model(**inputs, logits_to_keep=columns).logits
    else:
        logits = model(**inputs).logits[:, first:-1]
    targets = labels[:, first:]
    wanted = targets != -100
    return torch.nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")


def validation_loss(
    model: torch.nn.Module,
    rows: Sequence[TokenRow],
    collate: Callable[[list[dict[str, Any]]], Any],
    device: str,
    *,
    columns_only: bool,
) -> float:
    """Mean negative log-likelihood per supervised token over `rows`, in nats. Draws no random number."""
    import torch

    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        with torch.no_grad():
            for group in _batches(rows):
                batch = collate([labelled(row) for row in group])
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                total += summed_nll(model, batch, columns_only=columns_only).item()
                tokens += sum(row.supervised_tokens for row in group)
    finally:
        model.train(was_training)
    return total / tokens


def labelled(row: TokenRow) -> dict[str, list[int]]:
    """A row as TRL's collator takes it."""
    return {"input_ids": row.input_ids, "labels": [-100] * row.prompt_tokens + row.input_ids[row.prompt_tokens :]}


def _batches(rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
    batches: list[list[TokenRow]] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        fits = (
            batches
            and len(batches[-1]) < _VALIDATION_ROWS
            and (len(batches[-1]) + 1) * len(row.input_ids) <= _VALIDATION_TOKENS
        )
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
