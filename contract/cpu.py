"""What this machine's processor says it can do: the instructions that kernels choose between."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

# multiply 8-bit values and add four products in 32 bits; without them pairs are added in 16 bits, which overflow
_SAFE_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_FEATURES = ("avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Cpu:
    """A processor: its name, and those of its features that matter to int8."""

    model: str
    machine: str  # "x86_64", "aarch64" …
    features: tuple[str, ...]

    @property
    def int8_is_exact(self) -> bool:
        """Do int8 products add up without saturating? x86 without VNNI adds two of them in 16 bits."""
        return bool(_SAFE_INT8 & set(self.features)) or self.machine not in ("x86_64", "AMD64")


def this_cpu() -> Cpu:
    """This machine's."""
    model, flags = read_flags()
    return Cpu(model, platform.machine(), tuple(name for name in _FEATURES if name in flags))


def multiplies_bfloat16() -> bool:
    """Has it instructions for that? Also where nothing is known of it."""
    _, flags = read_flags()
    return not flags or bool(_BFLOAT16 & flags)


def read_flags() -> tuple[str, set[str]]:
    """The processor's name and all features that the kernel names; without a /proc/cpuinfo none is known."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), set()
    values: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name") or platform.machine(), set(flags.split())
