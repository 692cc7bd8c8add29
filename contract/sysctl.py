"""What macOS says of itself by name; nothing on any other system."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from functools import cache


@cache
def sysctl(name: str) -> str:
    """The value of a name of sysctl(3), such as "hw.memsize"; empty where there is no such name, or no macOS."""
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["/usr/sbin/sysctl", "-n", name]
            return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    return ""
