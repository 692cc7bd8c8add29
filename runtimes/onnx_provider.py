"""What ONNX graphs run on, execution provider and processor; known without onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast

from contract.cpu import this_cpu
from contract.errors import NoEngineError, listed

Provider = Literal["cpu", "cuda"]
PROVIDERS: Mapping[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_KEY = "ASSAY_ONNX_PROVIDER"


def chosen_provider(provider: str | None = None) -> Provider:
    """The execution provider: the one named, else the environment's, else the CPU.

    Raises:
        NoEngineError: there is no provider of that name.
    """
    name = provider or os.environ.get(_KEY) or "cpu"
    if name not in PROVIDERS:
        raise NoEngineError("no such execution provider", where=_KEY, expected=listed(PROVIDERS), got=name)
    return cast(Provider, name)


def onnx_runs_on() -> tuple[str, ...]:
    """What an ONNX folder's results depend on besides its files: the provider, the processor's int8 instructions."""
    return chosen_provider(), *this_cpu().features
