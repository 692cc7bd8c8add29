"""Drafts: what is abandoned goes, what may be somebody's stays, and files get names that nobody else takes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

import contract.drafts
from contract.drafts import boot_id, hold_draft, partial_of, remove_abandoned, sync_path


def abandon(place: Path) -> Path:
    """A draft with something in it, as a killed process of this machine leaves it."""
    held = hold_draft(place)
    (held.path / "half").write_text("half")
    if held._descriptor is not None:
        os.close(held._descriptor)  # what the kernel does when a process ends
    return held.path


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    abandon(tmp_path / "a")
    other = abandon(tmp_path / "b")
    remove_abandoned(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [other]


def test_nobody_takes_a_draft_away_from_a_process_that_lives(tmp_path: Path) -> None:
    held = hold_draft(tmp_path / "a")
    remove_abandoned(tmp_path / "a")
    assert held.path.is_dir()
    held.path.rename(tmp_path / "a")
    held.release()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_drafts_of_one_place_do_not_meet(tmp_path: Path) -> None:
    first, second = hold_draft(tmp_path / "a"), hold_draft(tmp_path / "a")
    assert first.path != second.path
    for held in (first, second):
        held.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "owner",
    [
        "0123456789ab-0123abcd",  # another machine, or this one before a restart
        "unlocked-0123abcd",  # a file system without locks
        str(os.getpid()),  # earlier versions: a process number, here our own, and one that nobody has
        str(2**22 + 1),
        "mine",
        "",
    ],
    ids=["another machine", "no locks", "our number", "a number", "a word", "nothing"],
)
def test_what_cannot_be_told_is_left_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], owner: str) -> None:
    folder = abandon(tmp_path / "a").rename(tmp_path / f".a.partial-{owner}")
    remove_abandoned(tmp_path / "a")
    assert (folder / "half").read_text() == "half"
    assert f"{folder} is unfinished" in capsys.readouterr().err


def test_where_the_machine_does_not_say_when_it_started_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract.drafts, "boot_id", lambda: None)
    folder = abandon(tmp_path / "a")
    remove_abandoned(tmp_path / "a")
    assert folder.is_dir()


def test_on_a_file_system_without_locks_a_draft_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = abandon(tmp_path / "a")
    monkeypatch.undo()
    remove_abandoned(tmp_path / "a")
    assert folder.is_dir()


def test_a_folder_that_was_taken_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, times = contract.drafts._locked, []

    def late(folder: Path) -> int | None:
        times.append(folder)
        if len(times) == 1:
            remove_abandoned(tmp_path / "a")  # locks it, and removes it
            folder.mkdir()
            descriptor = lock(folder)
            folder.rmdir()
            return descriptor
        return lock(folder)

    monkeypatch.setattr(contract.drafts, "_locked", late)
    held = hold_draft(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [held.path]
    assert held.path != times[0]
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_the_start_of_this_machine_is_told() -> None:
    assert boot_id()


def test_unfinished_files_have_names_of_their_own(tmp_path: Path) -> None:
    names = {partial_of(tmp_path / "x.json") for _ in range(50)}
    assert len(names) == 50  # containers that share a volume are all process number 1
    assert all(path.parent == tmp_path and path.name.startswith(".x.json.partial-") for path in names)


def test_where_the_drive_keeps_what_fsync_leaves_it_the_drive_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("whole")
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    sync_path(tmp_path / "a")
    assert asked == [51]


def test_a_file_system_that_cannot_tell_the_drive_is_synced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Operation not supported")

    synced: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", synced.append)
    sync_path(tmp_path)
    assert len(synced) == 1


def test_a_mac_tells_its_start_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract.drafts.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(contract.drafts, "sysctl", lambda name: {"kern.bootsessionuuid": "A-B-C"}[name])
    boot_id.cache_clear()
    try:
        assert boot_id() == "A-B-C"
    finally:
        boot_id.cache_clear()
