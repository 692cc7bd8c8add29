"""The machine and the programs an evaluation ran on, as far as they can change its figures."""

from __future__ import annotations

import os
import platform

from contract.artifact import tool_versions
from contract.cpu import read_flags
from contract.memory import installed_bytes
from evalsuite.results import Environment

# Instructions that quantized kernels choose between; results and speed differ with them.
_FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "llama-cpp-python",
    "gguf",
    "onnxruntime",
    "onnxruntime-gpu",
    "rouge-score",
    "numpy",
)


def environment(threads: int) -> Environment:
    """Look at this machine; `threads` is what was used."""
    model, flags = read_flags()
    return Environment(
        model,
        tuple(name for name in _FEATURES if name in flags),
        os.cpu_count() or 1,
        threads,
        installed_bytes(),
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
        tool_versions(*_PACKAGES),
    )
