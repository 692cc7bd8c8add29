"""What ONNX graphs run on, execution provider and processor; known without onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast

from contract.artifact import Artifact
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


def refuse_inexact_int8(artifact: Artifact, provider: Provider) -> None:
    """Raise where int8 products would saturate: weights of all 8 bits on an x86 without VNNI adds pairs in 16 bits.

    Export leaves a bit free on such a processor, and says so in the manifest; a folder without one says nothing.

    Raises:
        NoEngineError: the processor is not the artifact's fault.
    """
    quantization = artifact.details.get("quantization") or {}
    cpu = this_cpu()
    if provider == "cpu" and quantization.get("range") == "full" and not cpu.int8_is_exact:
        raise NoEngineError(
            "this processor adds int8 products in 16 bits, which these weights overflow",
            where=str(artifact.path),
            expected="weights of 7 bits, or a processor with VNNI",
            got=f"weights of 8 bits, {cpu.model}",
            hint="export it again on this machine, which takes 7 bits: "
            "assay export onnx MODEL --precision int8 --out DIR",
        )
