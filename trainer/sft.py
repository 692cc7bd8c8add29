"""TRL's SFTTrainer, told what we know: rows are ready, their order is fixed, only completions need logits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from contract.errors import AssayError
from trainer.loss import summed_nll, takes_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from contract.recipe import TrainPart
    from trainer.tokenize import TokenRow


class CompletionTrainer(SFTTrainer):
    """Trains on rows in the order given; the loss is summed_nll over all supervised tokens of an optimizer step."""

    columns_only: bool = False

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
        return summed_nll(model, inputs, columns_only=self.columns_only) / num_items_in_batch

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's writes a model card first


def make_config(train: TrainPart, work: Path, device: str, steps: int, log_every: int) -> SFTConfig:
    """The recipe's settings in TRL's words; every default that would change the data or the numbers is off."""
    # both would pass on the precision of an earlier training in this process
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state()
    schedulers = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    config = SFTConfig(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedulers[train.scheduler],
        warmup_steps=round(train.warmup_ratio * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch",
        seed=train.seed,
        data_seed=train.seed,
        bf16=train.nf4.compute_dtype == "bfloat16",
        fp16=train.nf4.compute_dtype == "float16",
        gradient_checkpointing=train.gradient_checkpointing,
        max_length=None,
        packing=False,
        completion_only_loss=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        dataloader_num_workers=0,
        eval_strategy="no",
        save_strategy="no",
        save_only_model=False,
        logging_steps=log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        push_to_hub=False,
    )
    config._n_gpu = min(config.n_gpu, 1)  # one device; with several visible Trainer would split batches over them
    return config


def make_trainer(
    model: PeftModel,
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
    trainer.columns_only = takes_columns(model.get_base_model())
    trainer.model_accepts_loss_kwargs = True  # the loss is divided by the step's tokens here, and nowhere again
    trainer.remove_callback(PrinterCallback)
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
