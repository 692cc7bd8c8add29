"""Cross-entropy on completions, in float32, with logits only for the positions that are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def summed_nll(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over every label that is not -100, as a float32 scalar.

    Args:
        model: a causal language model, or PEFT's around one.
        batch: input_ids and labels, each int64 [rows, tokens], padded on the right.
    """
    import torch

    labels = batch["labels"][:, 1:]
    wanted = labels != -100
    # no mask: padding on the right is never looked at
    with _only_at(model.get_output_embeddings(), wanted) as asked:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    found = logits[0] if asked else logits[:, :-1][wanted]
    return torch.nn.functional.cross_entropy(found.float(), labels[wanted], reduction="sum")


@contextmanager
def _only_at(head: Any, wanted: torch.Tensor) -> Iterator[list[bool]]:
    """Let the output embeddings see some positions only: summaries are short, and a vocabulary is large.

    What comes behind the head (a cap, a scale) works on single logits, so the model's own forward still runs.

    Args:
        head: the module that makes logits of hidden states [rows, tokens, size].
        wanted: bool [rows, tokens or one less]; the head then gives logits [1, positions, vocab_size].

    Yields:
        A list that is empty until the head was asked in that way.
    """
    asked: list[bool] = []

    def select(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = inputs
        asked.append(True)
        return (hidden[:, : wanted.shape[1]][wanted][None], *rest)

    handle = head.register_forward_pre_hook(select)
    try:
        yield asked
    finally:
        handle.remove()


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
