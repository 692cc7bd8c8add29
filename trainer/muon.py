"""Muon for the matrices of a model's layers, AdamW for all the rest, as one optimizer.

A base that was trained with Muon learns more from it in fine-tuning too, as Liu et al. (2025, "Muon is scalable for LLM
training") found; the embedded encoder-decoders were. torch has a Muon, but it computes in bfloat16, which a CPU without
such instructions does ten times more slowly than float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_MOMENTUM = 0.95
_BETAS, _EPS = (0.9, 0.999), 1e-8  # AdamW's, as with train.optimizer: adamw
_QUINTIC, _STEPS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. (2024)
_LIKE_ADAMW = 0.2  # root mean square of AdamW's updates, for which Muon's are scaled (Liu et al. 2025)
_UNSCALED = ("t5", "mt5", "umt5")  # their scores are not divided by √head size


class Muon(torch.optim.Optimizer):
    """Steps along orthogonalized momentum, as large as AdamW's would be.

    Args:
        groups: each with "params", "matrices" (of two dimensions, for Muon; else AdamW takes them) and, where they
            are others, "lr" and "weight_decay".
        lr: peak learning rate of both.
        weight_decay: of both, per step and learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "matrices": False})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; a closure is called first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["matrices"] else self._adamw
                weight.add_(update(weight, weight.grad), alpha=-group["lr"])
        return loss

    def _muon(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        nesterov = gradient.lerp(state["momentum"], _MOMENTUM)
        return orthogonalized(nesterov).mul_(_LIKE_ADAMW * math.sqrt(max(weight.shape)))

    def _adamw(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        mean, square = (
            state[name] / (1 - beta ** state["step"]) for name, beta in zip(("mean", "square"), _BETAS, strict=True)
        )
        return mean.div_(square.sqrt_().add_(_EPS))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix of about the same singular vectors, with singular values near 1 (by a Newton-Schulz iteration).

    Args:
        matrix: float32 [rows, columns].
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    made = wide / wide.norm().clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = made @ made.T
        made = torch.addmm(made, torch.addmm(gram, gram, gram, beta=b, alpha=c), made, beta=a)
    return made if wide is matrix else made.T


def muon_of(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> Muon:
    """The optimizer for every weight of a model.

    Norms and biases do not decay, as with train.optimizer: adamw. T5 does not divide its scores by √head size, so
    queries and keys move by √√head size less.
    """
    head = model.get_output_embeddings()
    matrices: list[torch.Tensor] = []
    unscaled: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            gentle = model.config.model_type in _UNSCALED and name.endswith((".q", ".k"))
            (unscaled if gentle else matrices).append(module.weight)
    taken = {id(weight) for weight in [*matrices, *unscaled]}
    rest = [weight for weight in model.parameters() if id(weight) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "matrices": True},
        {"params": [weight for weight in rest if weight.ndim > 1]},
        {"params": [weight for weight in rest if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if unscaled:
        groups.append({"params": unscaled, "matrices": True, "lr": learning_rate * model.config.d_kv**-0.25})
    return Muon(groups, lr=learning_rate, weight_decay=weight_decay)
