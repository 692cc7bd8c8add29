"""Folders on their way to be artifacts: whose they are, what a killed process left of them, how they get onto the disk.

A draft of NAME is `.NAME.partial-BOOT-TOKEN`, beside it: BOOT tells this start of this machine from every other, and
the process that makes the draft holds the folder locked for as long as it lives. Process numbers say less: the first
process of every container is number 1, another machine's number may run here too, and numbers come again. So a draft is
taken for abandoned only if it was made on this very boot of this machine, where locks are told truthfully even to other
containers, and nobody holds its lock. Whatever else lies there is left alone: many file systems keep a lock from other
machines' sight.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from glob import escape
from pathlib import Path

from contract.sysctl import sysctl

_UNKNOWN = "unlocked"  # in BOOT's place: nobody can tell whether somebody works on it


@dataclass
class HeldFolder:
    """A new, empty folder of this process; `release` removes it, if it still lies there, and lets go of its lock."""

    path: Path
    _descriptor: int | None

    def release(self) -> None:
        """The folder was moved to its place, or is not wanted."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hold_draft(place: Path) -> HeldFolder:
    """Make a folder beside `place`, to be moved there when it is whole; nobody takes it for abandoned until then.

    Raises:
        OSError: it cannot be made.
    """
    boot = _boot()
    while boot is not None:
        folder = _draft(place, boot)
        folder.mkdir()
        descriptor = None
        try:
            descriptor = _locked(folder)
            if descriptor is not None and _is(folder, descriptor):
                return HeldFolder(folder, descriptor)
        except FileNotFoundError:
            continue  # as below
        except OSError:  # a file system without locks
            folder.rmdir()
            boot = None
        if descriptor is not None:  # somebody took the new folder for abandoned before it was locked
            os.close(descriptor)
    folder = _draft(place, _UNKNOWN)
    folder.mkdir()
    return HeldFolder(folder, None)


def remove_abandoned(place: Path) -> None:
    """Remove drafts of this very artifact whose process is gone: what a SIGKILL leaves behind.

    What cannot be told is left, and said on stderr: a draft of another machine, of before a restart, on a file system
    without locks, or of an earlier version of this program.
    """
    for folder in sorted(place.parent.glob(f".{escape(place.name)}.partial-*")):
        boot = folder.name.rpartition(".partial-")[2].partition("-")[0]
        descriptor = None
        with suppress(OSError):
            if boot == _boot():
                descriptor = _locked(folder)
                if descriptor is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(descriptor)
                continue
        if folder.is_dir():
            print(
                f"note: {folder} is unfinished, and it cannot be told from here whether somebody works on it; "
                "remove it if nobody does",
                file=sys.stderr,
            )


def _draft(place: Path, boot: str) -> Path:
    return place.with_name(f".{place.name}.partial-{boot}-{secrets.token_hex(4)}")


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where somebody else does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _boot() -> str | None:
    """Short enough for a name."""
    boot = boot_id()
    return None if boot is None else hashlib.sha256(boot.encode()).hexdigest()[:12]


@cache
def boot_id() -> str | None:
    """What tells this start of this machine's kernel from every other, the same in all its containers, if it says."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    return sysctl("kern.bootsessionuuid") or None


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
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int) -> None:
    """Return when what was written to a file, or a folder's own entries, would outlast a power cut.

    On macOS fsync leaves it in the drive's own memory; F_FULLFSYNC, which some file systems lack, does not (fsync(2)).
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)
