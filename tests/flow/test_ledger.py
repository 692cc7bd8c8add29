"""The ledger: what counts as done, and that nothing is overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from contract.artifact import Artifact, new_artifact
from contract.errors import AssayError
from flow.ledger import Ledger, key_of, locked


def make(path: Path, text: str = "{}") -> Artifact:
    with new_artifact(path, "merged", "m") as draft:
        (draft.path / "config.json").write_text(text)
    return draft.finished


def test_done_means_same_key_and_same_bytes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    artifact = make(tmp_path / "merged")
    ledger.note("merged", key_of(a=1), artifact.digest)
    again = Ledger(tmp_path)
    assert again.valid("merged", key_of(a=1)) is not None
    assert again.valid("merged", key_of(a=2)) is None
    assert again.valid("adapter", key_of(a=1)) is None
    (tmp_path / "merged" / "config.json").write_text("[]")
    assert again.valid("merged", key_of(a=1)) is None


def test_an_artifact_put_there_by_hand_does_not_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note("merged", "k", make(tmp_path / "merged").digest)
    ledger.set_aside("merged")
    make(tmp_path / "merged", text='{"other": 1}')
    assert ledger.valid("merged", "k") is None


def test_stale_outputs_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for text in ("1", "2"):
        make(tmp_path / "gguf" / "q8_0", text)
        ledger.set_aside("gguf/q8_0")
    assert (tmp_path / "previous" / "gguf-q8_0-1" / "config.json").read_text() == "1"
    assert (tmp_path / "previous" / "gguf-q8_0-2" / "config.json").read_text() == "2"
    assert ledger.set_aside("gguf/q8_0") is None


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(AssayError, match="another run"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b'"merged"',
        b"[" * 200_000,
        b'{"merged": "done"}',
        b'{"merged": null}',
        b'{"merged": ["key", "digest"]}',
        b'{"merged": {"key": "k"}}',
        b'{"merged": {"key": "k", "digest": "d", "more": "m"}}',
        b'{"merged": {"key": "k", "digest": 3}}',
        b'{"merged": {"key": null, "digest": "d"}}',
    ],
)
def test_a_broken_ledger_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stages.json").write_bytes(content)
    with pytest.raises(AssayError, match="cannot be read") as refusal:
        Ledger(tmp_path)
    assert refusal.value.exit_code == 2
    assert "stages.json" in str(refusal.value)
    assert (tmp_path / "stages.json").read_bytes() == content


def test_a_folder_in_the_ledgers_place_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "stages.json").mkdir()
    with pytest.raises(AssayError, match="cannot be read"):
        Ledger(tmp_path)


def test_what_is_noted_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    Ledger(tmp_path).note("merged", "k", "d")
    assert synced == [(tmp_path / "stages.json").stat().st_ino, tmp_path.stat().st_ino]


def test_a_stage_that_was_made_before_the_manifests_second_schema_is_still_valid(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "adapter", "adapter", "a") as draft:
        (draft.path / "w.safetensors").write_bytes(b"w")
    path = tmp_path / "adapter" / "manifest.json"
    data = json.loads(path.read_text())
    old = draft.finished.manifest.files_digest
    path.write_text(json.dumps({**data, "schema": 1, "digest": old}))
    ledger = Ledger(tmp_path)
    ledger.note("adapter", "key", old)
    assert ledger.valid("adapter", "key") is not None
    ledger.note("adapter", "key", "1" * 64)
    assert ledger.valid("adapter", "key") is None
