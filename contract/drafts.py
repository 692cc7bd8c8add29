"""Folders on their way to be artifacts: whose they are, what a killed process left of them, how they get onto the disk.

A draft of NAME is `.NAME.partial-TOKEN`, beside it, and beside the draft lies `.NAME.partial-TOKEN.lock`: a file that
its process holds locked for as long as it lives, and that says on which boot of which machine that is. Process numbers
say less: a container's first process is number 1 in every container, another machine's number may run here too, and
numbers come again. So a draft is taken for abandoned only if it was made on this very boot of this machine, where locks
are told truthfully even to other containers, and nobody holds its lock. Whatever else lies there is left alone: some
file systems keep a lock from other machines' sight.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from glob import escape
from pathlib import Path
from typing import IO

_LOCK = ".lock"


@dataclass
class HeldFolder:
    """A new, empty folder of this process; `release` removes it, if it still lies there, and lets go of its lock."""

    path: Path
    _lock: Path
    _file: IO[str]

    def release(self) -> None:
        """The folder was moved to its place, or is not wanted."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        self._file.close()


def hold_draft(place: Path) -> HeldFolder:
    """Make a folder beside `place`, to be moved there when it is whole; nobody takes it for abandoned until then.

    Raises:
        OSError: it cannot be made.
    """
    folder = place.with_name(f".{place.name}.partial-{secrets.token_hex(4)}")
    lock = folder.with_name(folder.name + _LOCK)
    file = lock.open("x", encoding="utf-8")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:  # a file system without locks: what is left here is nobody's to remove
            held = False
        # written once the lock is held, so that whoever can read it may go by the lock
        json.dump({"boot": boot_id(), "machine": platform.node(), "process": os.getpid(), "held": held}, file)
        file.flush()
        folder.mkdir()
    except BaseException:
        lock.unlink(missing_ok=True)
        file.close()
        raise
    return HeldFolder(folder, lock, file)


def remove_abandoned(place: Path) -> None:
    """Remove drafts of this very artifact whose process is gone: what a SIGKILL leaves behind.

    What cannot be told is left, and said on stderr: a draft of another machine, of before a restart, on a file system
    without locks, or of an earlier version of this program.
    """
    for folder in sorted(place.parent.glob(f".{escape(place.name)}.partial-*")):
        if folder.name.endswith(_LOCK):
            if not folder.with_name(folder.name.removesuffix(_LOCK)).exists():
                _remove_if_free(folder, None)  # killed between its last two steps
        elif folder.is_dir() and not _remove_if_free(folder.with_name(folder.name + _LOCK), folder):
            print(
                f"note: {folder} is unfinished, and it cannot be told from here whether somebody works on it; "
                "remove it if nobody does",
                file=sys.stderr,
            )


def _remove_if_free(lock: Path, folder: Path | None) -> bool:
    """Remove a draft and its lock if its process is gone. False: it cannot be told."""
    try:
        with lock.open("r+", encoding="utf-8") as file:
            said = json.load(file)
            if not isinstance(said, dict) or said.get("held") is not True:
                return False
            if boot_id() is None or said.get("boot") != boot_id():
                return False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True  # somebody works on it
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
    except (OSError, ValueError, RecursionError):
        return False
    return True


@cache
def boot_id() -> str | None:
    """What tells this start of this machine's kernel from every other, the same in all its containers, if it says."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip() or None
    return None


def partial_of(path: Path) -> Path:
    """A new name beside `path` for a file that is moved there when it is whole; no other process takes it as well."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


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
