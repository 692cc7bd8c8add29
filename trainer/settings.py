"""The recipe's training settings in the words of transformers' Trainer, the same for every kind of model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.state import AcceleratorState

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from contract.recipe import TrainPart

_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def settings(train: TrainPart, work: Path, device: str, steps: int, log_every: int) -> dict[str, Any]:
    """What TrainingArguments take; every default that would change the data or the numbers is off."""
    # both would pass on the precision of an earlier training in this process
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state()
    return {
        "output_dir": str(work),
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": _SCHEDULERS[train.scheduler],
        "warmup_steps": round(train.warmup_ratio * steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": "adamw_torch",
        "seed": train.seed,
        "data_seed": train.seed,
        "bf16": train.nf4.compute_dtype == "bfloat16",
        "fp16": train.nf4.compute_dtype == "float16",
        "gradient_checkpointing": train.gradient_checkpointing,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "dataloader_num_workers": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_only_model": False,
        "logging_steps": log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "push_to_hub": False,
    }


def on_one_device(arguments: TrainingArguments) -> None:
    """Of several visible devices use one; Trainer would split batches over them."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
