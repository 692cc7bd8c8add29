"""How much memory this machine has, and the most that this process has used, on Linux and macOS."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from contract.sysctl import sysctl


def installed_bytes() -> int | None:
    """The machine's memory; None where the system does not tell. A container's own limit is not looked at."""
    with suppress(ValueError, OSError):  # a name that this system does not have is a ValueError
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if found > 0:
            return found
    said = sysctl("hw.memsize")
    return int(said) if said.isdigit() else None


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most physical memory that this process has held at once.

    Args:
        status: where Linux tells it of this process alone; getrusage, asked elsewhere, may remember what the process
            that started this one held (getrusage(2), "RUSAGE_SELF", and fork without exec).
    """
    with suppress(OSError):
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return rss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def rss_bytes(ru_maxrss: int) -> int:
    """The peak that getrusage or wait4 gives: macOS counts bytes, all others KiB."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024
