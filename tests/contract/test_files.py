"""Small files: whole or not at all, and on the disk before anybody is told so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.files import write_whole


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought onto the disk, by name, and when a file takes its place."""
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".partial-")[0])
        sync(descriptor)

    def moved(path: Path, target: Path) -> Path:
        seen.append("moved")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", moved)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path: Path, synced: list[str]) -> None:
    write_whole(tmp_path / "x.json", "{}")
    assert synced == [".x.json", "moved", tmp_path.name]
    synced.clear()
    write_whole(tmp_path / "y.json", "{}", durable=False)
    assert synced == ["moved"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "y.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x.json", "\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "old")]
