"""TRL's SFTTrainer, told what we know: rows are ready, their order is fixed, only completions have logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import SFTConfig, SFTTrainer

from contract.errors import AssayError
from trainer.loss import labelled, summed_nll
from trainer.ordered import OrderedRows
from trainer.settings import on_one_device, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from contract.recipe import TrainPart
    from trainer.tokenize import TokenRow


class CompletionTrainer(OrderedRows, SFTTrainer):
    """Trains a causal model on rows in the order given, on their completions."""

    def nll(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Negative log-likelihood in nats, summed over the completions' tokens."""
        return summed_nll(model, batch)

    def batch_of(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Rows through TRL's collator."""
        return self.data_collator([labelled(row) for row in rows])


def make_config(train: TrainPart, work: Path, device: str, steps: int, log_every: int) -> SFTConfig:
    """The recipe's settings in TRL's words."""
    config = SFTConfig(
        **settings(train, work, device, steps, log_every), max_length=None, packing=False, completion_only_loss=True
    )
    on_one_device(config)
    return config


def make_trainer(
    model: Any,
    config: SFTConfig,
    rows: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    callback: TrainerCallback,
    stops: Iterable[int],
) -> CompletionTrainer:
    """The trainer over `rows`, already in their order, after an audit of what TRL made of them.

    Raises:
        AssayError: the labels TRL built are not the rows' completions.
    """
    from datasets import Dataset

    dataset = Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "completion_mask": [row.completion_mask for row in rows]}
    )
    initial = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    trainer = CompletionTrainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[callback]
    )
    # SFTTrainer casts the adapter of a 4-bit model to bfloat16, where small updates round away
    for name, parameter in model.named_parameters():
        if name in initial:
            parameter.data = initial[name]
    trainer.settle()
    audit_batch(trainer, rows, stops)
    return trainer


def audit_batch(trainer: SFTTrainer, rows: Sequence[TokenRow], stops: Iterable[int]) -> None:
    """Check the first batch as the model gets it: prompts masked, completions whole, the stop token in the labels."""
    stops = frozenset(stops)
    problems = (
        [] if len(trainer.train_dataset) == len(rows) else [f"{len(trainer.train_dataset)} rows instead of {len(rows)}"]
    )
    batch = next(iter(trainer.get_train_dataloader()))
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=False):
        expected = [-100] * row.prompt_tokens + row.input_ids[row.prompt_tokens :]
        if ids[: len(row.input_ids)] != row.input_ids:
            problems.append(f"{row.id}: other ids")
        elif labels != expected + [-100] * (len(labels) - len(expected)):
            problems.append(f"{row.id}: labels are not its completion")
        elif [label for label in labels if label != -100][-1] not in stops:
            problems.append(f"{row.id}: no stop token in the labels")
    if problems:
        raise AssayError(
            "the batch that would be learned is not the rows that were prepared", got="; ".join(problems[:5])
        )
