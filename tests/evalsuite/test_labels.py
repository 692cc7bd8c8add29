"""Labels become file names: none may differ from another by capitals alone, which macOS takes for one name."""

from __future__ import annotations

import struct
from pathlib import Path

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from evalsuite.loadable import Fault, unloadable
from evalsuite.plan import plan


def bare(path: Path, content: bytes) -> Artifact:
    """A GGUF without metadata, so that nothing but its name gives it a label."""
    path.parent.mkdir()
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + content)
    return open_artifact(path)


def test_no_two_labels_are_one_file_name_on_a_mac(tmp_path: Path) -> None:
    names = ["Summaries", "summaries", "SUMMARIES"]
    artifacts = [bare(tmp_path / str(at) / f"{name}.gguf", bytes([at])) for at, name in enumerate(names)]
    labels = [node.label for node in plan(artifacts, None, None)]
    assert labels == ["Summaries", "summaries-2", "SUMMARIES-3"]


def test_nor_are_those_of_what_cannot_be_loaded(tmp_path: Path) -> None:
    faults = [
        Fault(bare(tmp_path / str(at) / f"{name}.gguf", bytes([at])), AssayError("damaged"))
        for at, name in enumerate(["Bare", "bare", "other"])
    ]
    labels = [each.label for each in unloadable(faults, ["OTHER"])]
    assert len({label.casefold() for label in [*labels, "OTHER"]}) == 4
