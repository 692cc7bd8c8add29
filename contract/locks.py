"""A lock between processes on an open file or folder, let go when it is closed or the process ends."""

from __future__ import annotations

import fcntl
from pathlib import Path

from contract.errors import AssayError


def lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    """Take the lock.

    Args:
        descriptor: of the open file or folder.
        path: its name, for the message.
        wait: until another process lets go of it.

    Returns:
        False: another process holds it. Never where we wait.

    Raises:
        AssayError: the file system keeps no locks, as some network shares and mounted folders; without one two
            processes could undo each other's work, so that none goes on.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise AssayError(
            "the file system keeps no locks between processes",
            where=str(path),
            got=str(error),
            hint="work in a folder on a local disk",
        ) from None
    return True
