"""What our trainers share: rows in the order given, one loss per supervised token of a whole optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from trainer.parts import parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset


class OrderedRows(Trainer):
    """In front of a Trainer class; what is behind says `nll` and `batch_of`."""

    def nll(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Negative log-likelihood in nats, summed over the supervised tokens of a batch."""
        raise NotImplementedError

    def batch_of(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Prepared rows as a batch of the kind that is trained on."""
        raise NotImplementedError

    def training_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward; on a CPU a part of the batch at a time. Returns the loss of the batch."""
        parts = parts_of(dict(inputs)) if self.args.use_cpu else [inputs]
        losses = [super(OrderedRows, self).training_step(model, part, num_items_in_batch) for part in parts]
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean negative log-likelihood in nats per supervised token of the whole optimizer step.

        SFTTrainer's own also computes entropy and accuracy, on a CPU for every position of the prompt too.
        """
        assert num_items_in_batch is not None
        assert not return_outputs
        return self.nll(model, inputs) / num_items_in_batch

    def settle(self) -> None:
        """Once made: the loss is divided by the step's tokens here, and nowhere again; Course does the printing."""
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's writes a model card first
