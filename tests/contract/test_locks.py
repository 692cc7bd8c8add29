"""Locks between processes: taken, held by another, and what happens where a file system keeps none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.files import alone
from contract.history import restore
from contract.locks import lock

REFUSAL = AssayError("another process works here")


def test_one_holds_it_until_the_file_is_closed(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))  # a folder can be locked too
    assert lock(first, tmp_path, wait=False)
    assert not lock(second, tmp_path, wait=False)
    os.close(first)
    assert lock(second, tmp_path, wait=True)
    os.close(second)


def test_the_second_of_two_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path / ".lock", REFUSAL), pytest.raises(AssayError, match="another process"):  # noqa: SIM117
        with alone(tmp_path / ".lock", REFUSAL):
            pass
    with alone(tmp_path / ".lock", REFUSAL):
        pass


@pytest.fixture(params=[errno.ENOTSUP, errno.ENOLCK, errno.EINVAL])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network share, or a folder that a virtual machine has mounted."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_none_works_alone(tmp_path: Path, no_locks: None) -> None:
    with pytest.raises(AssayError, match="keeps no locks") as caught, alone(tmp_path / ".lock", REFUSAL):
        pytest.fail("it went on")
    assert caught.value.exit_code == 2


def test_nor_is_a_history_changed(tmp_path: Path, no_locks: None) -> None:
    with pytest.raises(AssayError, match="keeps no locks"):
        restore(tmp_path / "verdict.json", [])
    assert list(tmp_path.iterdir()) == []
