"""Protobuf's wire format, read and written without a schema: fields by their numbers."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap
_BYTES = 2  # the wire type of strings, messages and packed numbers


def fields(data: Data, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, where it begins, where it ends) of every field; of an integer (number, its value, -1).

    Fields of four and of eight bytes are passed over.

    Raises:
        ValueError: it is cut short, or no such format.
        IndexError: it is cut short in the middle of a number.
    """
    while at < end:
        tag, at = integer(data, at)
        match tag & 7:
            case 0:
                value, at = integer(data, at)
                yield tag >> 3, value, -1
            case 1:
                at += 8
            case 2:
                size, at = integer(data, at)
                if at + size > end:
                    raise ValueError(f"it ends at byte {end}, in the middle of a field")
                yield tag >> 3, at, at + size
                at += size
            case 5:
                at += 4
            case kind:
                raise ValueError(f"a field of kind {kind} at byte {at}")


def integer(data: Data, at: int) -> tuple[int, int]:
    """A number that begins at a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def number_field(number: int, value: int) -> bytes:
    """A field of an integer; a negative one takes the ten bytes of its 64-bit complement."""
    return _varint(number << 3) + _varint(value & (1 << 64) - 1)


def bytes_field(number: int, *parts: bytes | str) -> bytes:
    """A field of a string or a message, given in parts."""
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
