"""Weights in files that the digest leaves out, and evaluations written into what was evaluated."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from contract.artifact import new_artifact, open_artifact
from contract.artifact_prompt import refuse_split
from contract.errors import AssayError
from contract.verdict import Verdict
from evalsuite.folder import refuse_foreign_folder
from runtimes.onnx_file import refuse_unlisted_weights
from tests.kit.verdicts import write_verdicts


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format, for contents of less than 128 bytes."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def graph(location: str) -> bytes:
    """A ModelProto whose one initializer lies in that file."""
    entry = field(1, b"location") + field(2, location.encode())
    return field(7, field(5, field(8, b"w") + field(13, entry)))


@pytest.mark.parametrize(
    "location", ["measured/w.bin", ".w.bin", "verdict.dsse.json", "verdict.json", "../w.bin", "gone.bin"]
)
def test_a_graph_whose_weights_the_digest_leaves_out_is_not_run(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.onnx").write_bytes(graph(location))
    if location != "gone.bin":
        (folder / location).parent.mkdir(exist_ok=True)
        (folder / location).write_bytes(b"weights")
    with pytest.raises(AssayError, match="files that are not part of the artifact") as refusal:
        refuse_unlisted_weights(open_artifact(folder))
    assert location in str(refusal.value)


def test_a_graph_with_its_weights_beside_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.onnx").write_bytes(graph("model.onnx_data"))
    (tmp_path / "model.onnx_data").write_bytes(b"weights")
    refuse_unlisted_weights(open_artifact(tmp_path))


def part_of_a_split(path: Path) -> Path:
    """A .gguf whose metadata say that it is one of three."""
    key = b"split.count"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 3)  # uint16
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry)
    return path


def test_one_part_of_a_split_gguf_is_not_run(tmp_path: Path) -> None:
    """llama.cpp opens the other parts by their names, and nobody would have looked at those."""
    path = part_of_a_split(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(AssayError, match="one part of several") as refusal:
        refuse_split(open_artifact(path).gguf_path)
    assert "--merge" in str(refusal.value)


def test_an_evaluation_is_not_written_into_an_artifact_that_was_evaluated(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "q8_0", "gguf", "m") as draft:
        (draft.path / "m.gguf").write_bytes(b"GGUF")
    made = draft.finished
    write_verdicts(made.verdict_path, [Verdict("q8_0", made.digest, "pass", ())])
    with pytest.raises(AssayError, match="something that is not an evaluation"):
        refuse_foreign_folder(made.path)
    foreign = tmp_path / "onnx"
    foreign.mkdir()
    for name in ("model.onnx", "verdict.json"):
        (foreign / name).touch()
    with pytest.raises(AssayError, match="something that is not an evaluation"):
        refuse_foreign_folder(foreign)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "verdict.json").touch()
    (tmp_path / "begun" / "cache").mkdir()
    refuse_foreign_folder(tmp_path / "begun")
