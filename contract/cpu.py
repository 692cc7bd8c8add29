"""What this machine's processor says it can do: the instructions that kernels choose between, and how many cores."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from contract.sysctl import sysctl

# multiply 8-bit values and add four products in 32 bits; without them pairs are added in 16 bits, which overflow
_SAFE_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_FEATURES = ("avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
# what macOS calls them on Apple silicon -> what Linux does
_APPLE_FEATURES = {
    "AdvSIMD": "asimd",
    "arm.FEAT_BF16": "bf16",
    "arm.FEAT_DotProd": "asimddp",
    "arm.FEAT_FP16": "asimdhp",
    "arm.FEAT_I8MM": "i8mm",
}


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


def read_flags(info: Path = Path("/proc/cpuinfo")) -> tuple[str, set[str]]:
    """The processor's name and all features that the kernel names, in Linux's words; none where it names none.

    Args:
        info: where Linux says it.
    """
    if not info.is_file():
        features = {name for apple, name in _APPLE_FEATURES.items() if sysctl(f"hw.optional.{apple}") == "1"}
        return sysctl("machdep.cpu.brand_string") or platform.machine(), features
    values: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name") or platform.machine(), set(flags.split())


def usable_cores(groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use, at least 1: what an operator allotted it, not what the machine has.

    Of the cores it may be scheduled on, no more than its control groups give it time for, rounded down: with 2.5
    cores' time a third thread would wait, and all others for it.

    Args:
        groups: which control groups the process is in, as Linux says it.
        mounts: where control groups are found.
    """
    # macOS tells only what there is
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(share) for share in _shares(groups, mounts))]))


def _shares(groups: Path, mounts: Path) -> list[float]:
    """Cores' worth of time that the process's group and those around it may use, where there is a limit."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounts / controllers if controllers else mounts
        here = root / group.lstrip("/")
        # a container may see its own group as the root, whatever it is called outside
        for folder in dict.fromkeys((here, *here.parents, root)):
            if folder.is_relative_to(root) and (share := _share(folder)) is not None:
                found.append(share)
    return found


def _share(folder: Path) -> float | None:
    """Of one group: cpu.max of version 2, or the quota and period of version 1, both in microseconds."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: there is no limit
        return None
