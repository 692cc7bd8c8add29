"""Reading and writing at a place of an open file, with what Linux and macOS have in common."""

from __future__ import annotations

import os

# what one call may be asked for: macOS refuses 2 GiB and more (pwrite(2), "EINVAL"), and Linux does part of it
_MOST_BYTES = 1 << 30


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill `view` (of bytes) from the file's byte `offset` on.

    Returns:
        How many bytes were read: fewer than `view` has room for where the file ends.
    """
    done = 0
    while done < len(view):
        part = view[done : done + _MOST_BYTES]
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [part], offset + done)
        else:  # macOS before 11
            data = os.pread(descriptor, len(part), offset + done)
            count = len(data)
            part[:count] = data
        if not count:
            break
        done += count
    return done


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` (of bytes) at the file's byte `offset`.

    Raises:
        OSError: the disk is full, or fails.
    """
    while view:
        count = os.pwrite(descriptor, view[:_MOST_BYTES], offset)
        view, offset = view[count:], offset + count


def begin_flush(descriptor: int, offset: int, size_bytes: int) -> None:
    """Begin writing to the disk, so that a sync at the end finds little left; nothing where the system has no such."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)
