"""Reading and writing at a place of a file, whole whatever the system does of it in one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.tensors import at_offset
from export.tensors.at_offset import begin_flush, read_at, write_at

DATA = bytes(range(256)) * 40


@pytest.fixture
def descriptor(tmp_path: Path) -> object:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


@pytest.fixture(params=["preadv", "pread"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pread":
        monkeypatch.delattr(os, "preadv", raising=False)
    return str(request.param)


def test_what_was_written_is_read(descriptor: int, reading: str) -> None:
    write_at(descriptor, memoryview(DATA), 100)
    back = bytearray(len(DATA))
    assert read_at(descriptor, memoryview(back), 100) == len(DATA)
    assert back == DATA
    assert os.fstat(descriptor).st_size == 100 + len(DATA)


def test_the_end_of_a_file_is_told(descriptor: int, reading: str) -> None:
    write_at(descriptor, memoryview(DATA), 0)
    back = bytearray(len(DATA) + 7)
    assert read_at(descriptor, memoryview(back), 0) == len(DATA)
    assert read_at(descriptor, memoryview(back), len(DATA)) == 0


def at_most(most: int, call: Callable[..., int]) -> Callable[..., int]:
    """The system call, where more than so many bytes are refused, as macOS refuses 2 GiB."""

    def limited(descriptor: int, what: object, offset: int) -> int:
        size = sum(map(len, what)) if isinstance(what, list) else what if isinstance(what, int) else len(what)  # type: ignore[arg-type]
        if size > most:
            raise OSError(22, "Invalid argument")
        return call(descriptor, what, offset)

    return limited


def test_no_call_asks_for_more_than_a_system_takes(
    descriptor: int, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_offset, "_MOST_BYTES", 1000)
    for name in ("pwrite", reading):
        monkeypatch.setattr(os, name, at_most(1000, getattr(os, name)))
    write_at(descriptor, memoryview(DATA), 3)
    back = bytearray(len(DATA))
    assert read_at(descriptor, memoryview(back), 3) == len(DATA)
    assert back == DATA


def test_a_call_is_asked_for_less_than_two_gigabytes() -> None:
    assert at_offset._MOST_BYTES < 2**31 - 1


def test_no_advice_where_the_system_takes_none(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at(descriptor, memoryview(DATA), 0)
    begin_flush(descriptor, 0, len(DATA))
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    begin_flush(descriptor, 0, len(DATA))
    assert os.fstat(descriptor).st_size == len(DATA)
