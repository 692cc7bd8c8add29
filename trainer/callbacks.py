"""What happens along the way: log rows, progress on stderr, validation and a sealed checkpoint at the planned steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from contract.errors import AssayError
from trainer.checkpoint import prune, seal


class Course(TrainerCallback):
    """Keeps the training log and makes checkpoints that count.

    Args:
        work: the folder of the checkpoints.
        fingerprint: what the training is made of.
        evaluate_at: the steps at which validation loss is measured and a checkpoint kept.
        tokens_after: input tokens seen after each step; tokens_after[0] is 0.
        validate: measures the validation loss, in nats per token.
        log: rows of an earlier part of this training.
    """

    def __init__(
        self,
        work: Path,
        fingerprint: dict[str, str],
        evaluate_at: Collection[int],
        tokens_after: Sequence[int],
        validate: Callable[[], float],
        log: list[dict[str, Any]],
    ) -> None:
        self.work, self.fingerprint, self.evaluate_at = work, fingerprint, frozenset(evaluate_at)
        self.tokens_after, self.validate, self.log = tokens_after, validate, log
        self.started, self.first_step = time.monotonic(), 0
        self.validation_s = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first_step, self.validation_s = time.monotonic(), state.global_step, 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a log row and a checkpoint where one is planned."""
        if state.global_step in self.evaluate_at:
            control.should_log = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Take down the training loss; stop where it is no number."""
        if not logs or "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise AssayError(
                "the training loss is not finite",
                where=f"step {step}",
                got=str(loss),
                hint="lower train.learning_rate, or compute in float32 or bfloat16",
            )
        if self.log and self.log[-1].get("loss") is not None and self.log[-1]["step"] == step:
            return
        self.log.append(
            {
                "step": step,
                "loss": loss,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm"),
                "input_tokens": self.tokens_after[step],
            }
        )
        speed = self.input_tokens_per_s(step)
        left_s = (self.tokens_after[-1] - self.tokens_after[step]) / speed
        _say(f"step {step}/{state.max_steps}  loss {loss:.4f}  {speed:,.0f} tokens/s  {_duration(left_s)} left")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure validation loss, then seal the checkpoint that was just written."""
        step = state.global_step
        started = time.monotonic()
        loss = self.validate()
        self.validation_s += time.monotonic() - started
        if not math.isfinite(loss):
            raise AssayError(
                "the validation loss is not finite",
                where=f"step {step}",
                got=str(loss),
                hint="lower train.learning_rate",
            )
        self.log.append({"step": step, "validation_loss": loss})
        seal(self.work / f"checkpoint-{step}", step, loss, self.fingerprint, self.log)
        prune(self.work)
        _say(f"step {step}/{state.max_steps}  validation loss {loss:.4f}")

    def input_tokens_per_s(self, step: int) -> float:
        """Input tokens (prompt and completion, no padding) per second of training, validation left out."""
        tokens = self.tokens_after[step] - self.tokens_after[self.first_step]
        return tokens / max(1e-9, time.monotonic() - self.started - self.validation_s)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
