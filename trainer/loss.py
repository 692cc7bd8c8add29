"""Cross-entropy on completions, in float32, with logits only for the columns that need them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

    from trainer.tokenize import TokenRow


class Supervised(Protocol):
    """A row, as far as lengths go."""

    @property
    def tokens(self) -> int:
        """All that is computed for it."""
        ...

    @property
    def supervised_tokens(self) -> int:
        """How many tokens the loss is taken on."""
        ...


Row = TypeVar("Row", bound=Supervised)

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
    rows: Sequence[Row],
    batch_of: Callable[[list[Row]], dict[str, torch.Tensor]],
    nll: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    device: str,
) -> float:
    """Mean negative log-likelihood per supervised token over `rows`, in nats. Draws no random number.

    Args:
        model: what is trained.
        rows: in any order.
        batch_of: collates rows.
        nll: summed over the supervised tokens of a batch, in nats.
        device: where the model is.
    """
    import torch

    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        with torch.no_grad():
            for group in _batches(rows):
                batch = {name: tensor.to(device) for name, tensor in batch_of(group).items()}
                total += nll(model, batch).item()
                tokens += sum(row.supervised_tokens for row in group)
    finally:
        model.train(was_training)
    return total / tokens


def labelled(row: TokenRow) -> dict[str, list[int]]:
    """A row as TRL's collator takes it."""
    return {"input_ids": row.input_ids, "labels": [-100] * row.prompt_tokens + row.input_ids[row.prompt_tokens :]}


def _batches(rows: Sequence[Row]) -> list[list[Row]]:
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.tokens):
        fits = (
            batches
            and len(batches[-1]) < _VALIDATION_ROWS
            and (len(batches[-1]) + 1) * row.tokens <= _VALIDATION_TOKENS
        )
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
