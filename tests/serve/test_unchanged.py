"""Files that change between being hashed and being loaded are seen, whichever and however."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.errors import AssayError
from serve.unchanged import fingerprint, refuse_changed


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with new_artifact(tmp_path / "a", "onnx", "m") as draft:
        (draft.path / "model.onnx").write_bytes(b"graph" * 100)
        (draft.path / "config.json").write_text("{}")
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "weights.onnx_data").write_bytes(b"weights" * 100)
    return draft.finished


def overwrite(folder: Path) -> None:
    """Other bytes, as many, and the times set back."""
    path = folder / "deep" / "weights.onnx_data"
    stat = path.stat()
    path.write_bytes(b"damaged" * 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def swap(folder: Path) -> None:
    """Another file under the name, its times copied."""
    shutil.copy2(folder / "model.onnx", folder / "other")
    (folder / "other").replace(folder / "model.onnx")


def swap_and_back(folder: Path) -> None:
    """As it was by the time it is looked at again."""
    (folder / "model.onnx").rename(folder / ".kept")
    (folder / "model.onnx").write_bytes(b"other")
    (folder / ".kept").replace(folder / "model.onnx")


def link(folder: Path) -> None:
    """The same bytes, by way of a link that may lead elsewhere the next time."""
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (overwrite, "weights.onnx_data"),
        (swap, "model.onnx"),
        (swap_and_back, "model.onnx"),
        (link, "model.onnx"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "manifest.json").touch(), "manifest.json"),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), "chat_template.jinja"),
    ],
)
def test_a_change_is_seen(artifact: Artifact, change: Callable[[Path], None], named: str) -> None:
    before = fingerprint(artifact)
    refuse_changed(artifact, before)
    change(artifact.folder)
    with pytest.raises(AssayError, match="changed while it was being loaded") as refusal:
        refuse_changed(artifact, before)
    assert named in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_what_is_no_part_of_the_model_may_come_and_go(artifact: Artifact) -> None:
    before = fingerprint(artifact)
    (artifact.folder / "verdict.json").write_text("{}")
    (artifact.folder / "measured").mkdir()
    (artifact.folder / "measured" / "log.json").write_text("{}")
    (artifact.folder / "photo.png").write_bytes(b"")
    (artifact.folder / "model.onnx").read_bytes()
    refuse_changed(artifact, before)


def test_of_a_bare_file_nothing_else_in_its_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    bare = open_artifact(tmp_path / "m.gguf")
    before = fingerprint(bare)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    refuse_changed(bare, before)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(AssayError, match=r"m\.gguf"):
        refuse_changed(bare, before)
