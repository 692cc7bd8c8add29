"""The pretraining loop: Muon and AdamW, one schedule, until the steps or the minutes are used up."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

MUON_LEARNING_RATE = 0.02
ADAMW_LEARNING_RATE = 3e-3
WARMUP = 0.03

Batch = TypeVar("Batch")


def schedule(progress: float) -> float:
    """Share of the peak learning rate: linear warmup, then half a cosine; progress runs from 0 to 1."""
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    after = min((progress - WARMUP) / (1 - WARMUP), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * after))


def optimizers(
    model: torch.nn.Module,
    matrices: Iterable[torch.Tensor],
    share: float,
    gentle: Iterable[torch.Tensor] = (),
    bold: Iterable[torch.Tensor] = (),
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for embeddings and norms.

    With AdamW alone so small a model needs several times the steps until it copies numbers.

    Args:
        model: whose parameters are trained.
        matrices: those that Muon takes.
        share: of the peak learning rates.
        gentle: more for Muon, at an eighth of its learning rate.
        bold: of the others those that AdamW trains at ten times its learning rate.
    """
    by_muon = _groups((matrices, share * MUON_LEARNING_RATE), (gentle, share * MUON_LEARNING_RATE / 8))
    boldly = list(bold)
    held = {id(p) for p in [*boldly, *(p for group in by_muon for p in group["params"])]}
    others = [p for p in model.parameters() if id(p) not in held]
    by_adamw = _groups((others, share * ADAMW_LEARNING_RATE), (boldly, share * ADAMW_LEARNING_RATE * 10))
    return [
        torch.optim.Muon(by_muon, weight_decay=0.02),
        torch.optim.AdamW(by_adamw, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def _groups(*given: tuple[Iterable[torch.Tensor], float]) -> list[dict[str, Any]]:
    groups = [{"params": list(parameters), "lr": rate} for parameters, rate in given]
    return [group for group in groups if group["params"]]


def autocast() -> contextlib.AbstractContextManager[Any]:
    """bf16 where the CPU has it, which is about twice as quick; plain fp32 elsewhere."""
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def run(
    model: torch.nn.Module,
    trained_by: list[torch.optim.Optimizer],
    batch_at: Callable[[float], Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, float | None]],
    *,
    steps: int | None,
    minutes: float | None,
) -> list[float]:
    """Train in place; returns the loss of each step.

    Args:
        model: what is trained.
        trained_by: its optimizers, at their peak learning rates.
        batch_at: the next batch at a progress from 0 to 1.
        loss_of: the loss of a batch, and the mean nats per token of its answers where it has some.
        steps: how many; or
        minutes: how long.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes")
    groups = [group for optimizer in trained_by for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    losses: list[float] = []
    answers: list[float] = []  # the part that copying brings down; names made up on the spot keep the rest high
    model.train()
    start = time.monotonic()
    progress = 0.0
    while progress < 1:
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * schedule(progress)
        loss, copied = loss_of(batch_at(progress))
        for optimizer in trained_by:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in trained_by:
            optimizer.step()
        losses.append(loss.item())
        if copied is not None:
            answers.append(copied)
        elapsed = time.monotonic() - start
        progress = len(losses) / steps if steps is not None else elapsed / (60 * (minutes or 1))
        if len(losses) % 20 == 0 or progress >= 1:
            recent, of_answers = (sum(last) / max(1, len(last)) for last in (losses[-20:], answers[-20:]))
            left = max(0.0, elapsed / progress - elapsed)
            told = f"step {len(losses)}  loss {recent:.3f}  of answers {of_answers:.3f}"
            print(f"{told}  {elapsed:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)
    model.eval()
    return losses
