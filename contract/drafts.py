"""Folders on their way to be artifacts: what a killed process left of them, and how they get onto the disk."""

from __future__ import annotations

import os
import shutil
from glob import escape
from pathlib import Path


def remove_abandoned(path: Path) -> None:
    """Drafts of this very artifact whose process is gone: what a SIGKILL leaves behind."""
    for left in path.parent.glob(f".{escape(path.name)}.partial-*"):
        pid = left.name.rpartition("-")[2]
        # our own number on a draft we have not begun: an earlier process had it, as pid 1 of a container has
        if pid.isdigit() and (pid == str(os.getpid()) or not _is_running(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(folder: Path) -> None:
    """Have every file below a folder, and the folder, on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_path(path)
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_path(path)


def sync_path(path: Path) -> None:
    """Have a file's content, or a folder's own entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
