"""`assay inspect` says intact only of what it could compare, and sees a .gguf that was cut."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from flow.inspect_artifact import as_text, describe


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A small .gguf of another maker."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in "ab":
        writer.add_tensor(name, np.ones((8, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_one_has_nothing_to_be_compared_with(bare: Path) -> None:
    found = describe(bare)
    assert found["damage"] is None
    assert "nothing recorded" in as_text(found)
    assert "intact" not in as_text(found)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_one_that_was_cut(bare: Path, share: float) -> None:
    data = bare.read_bytes()
    bare.write_bytes(data[: int(len(data) * share)])
    found = describe(bare)
    assert "cut short" in found["damage"]
    assert "DAMAGED: m.gguf" in as_text(found)
