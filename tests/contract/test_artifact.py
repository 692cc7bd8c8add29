"""Artifacts: whole or not at all, opened whoever made them, and damage seen."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract.artifact import new_artifact, open_artifact, refuse_existing
from contract.errors import AssayError
from tests.contract.test_drafts import abandon

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]


def make(path: Path, text: str = "{}", **details: object) -> None:
    with new_artifact(path, "merged", "m", details=details) as draft:
        (draft.path / "config.json").write_text(text)
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "w.safetensors").write_bytes(b"w" * 100)
        (draft.measured / "log.jsonl").write_text(str(time.time()))
        draft.measurements["wall_s"] = time.time()


def test_round_trip_and_a_digest_free_of_measurements(tmp_path: Path) -> None:
    make(tmp_path / "a", dtype="float16")
    make(tmp_path / "b", dtype="float16")
    a, b = open_artifact(tmp_path / "a", verify=True), open_artifact(tmp_path / "b", verify=True)
    assert a.digest == b.digest
    assert a.details == {"dtype": "float16"}
    assert [f.path for f in a.manifest.files] == ["config.json", "sub/w.safetensors"]
    make(tmp_path / "c", text="{ }")
    assert open_artifact(tmp_path / "c").digest != a.digest


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(AssayError, match="exists already"):
        make(tmp_path / "a", text="{ }")
    assert (tmp_path / "a" / "config.json").read_text() == "{}"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        with new_artifact(tmp_path / "a", "merged", "m") as draft:
            (draft.path / "config.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_sigkill_leaves_nothing_and_its_remains_are_removed(tmp_path: Path) -> None:
    code = (
        f"import time\nfrom contract.artifact import new_artifact\nwith new_artifact({str(tmp_path / 'a')!r}, 'merged',"
        " 'm') as draft:\n    (draft.path / 'config.json').write_text('{}')\n    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "a").exists()
    assert len(list(tmp_path.iterdir())) == 1
    make(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / "sub" / "w.safetensors").write_bytes(b"w" * 99), "99 bytes, 100 were written"),
        (lambda a: (a / "sub" / "w.safetensors").write_bytes(b"w" * 50 + b"x" + b"w" * 49), "its bytes were changed"),
        (lambda a: (a / "config.json").unlink(), "config.json: missing"),
        (lambda a: (a / "extra.safetensors").write_bytes(b""), "extra.safetensors: not in the manifest"),
    ],
)
def test_damage_is_seen(tmp_path: Path, damage: object, message: str) -> None:
    make(tmp_path / "a")
    damage(tmp_path / "a")  # type: ignore[operator]
    with pytest.raises(AssayError, match="not intact") as refusal:
        open_artifact(tmp_path / "a", verify=True)
    assert message in str(refusal.value)


def test_an_edited_manifest_is_seen(tmp_path: Path) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][0]["size_bytes"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(AssayError, match="does not agree with itself"):
        open_artifact(tmp_path / "a")


def test_what_assay_did_not_make(tmp_path: Path, llama_folder: Path, adapter_folder: Path) -> None:
    model, adapter = open_artifact(llama_folder, verify=True), open_artifact(adapter_folder)
    assert (model.kind, model.foreign) == ("merged", True)
    assert (adapter.kind, adapter.foreign) == ("adapter", True)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\x00" * 20)
    bare = open_artifact(tmp_path / "m.gguf")
    assert (bare.kind, bare.gguf_path) == ("gguf", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.gguf", b"nope", "not a model file"),
        ("readme.md", b"hi", "not a model file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssayError, match=message):
        open_artifact(tmp_path / name)
    with pytest.raises(AssayError, match="not a model"):
        open_artifact(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(AssayError, match="safetensors only"):
        open_artifact(tmp_path)


def test_a_gguf_artifact_without_its_file_is_one_message(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a", "gguf", "m") as draft:
        (draft.path / "config.json").write_text("{}")
    with pytest.raises(AssayError, match=r"no \.gguf"):
        _ = open_artifact(tmp_path / "a").gguf_path


def test_nothing_is_made_inside_an_artifact(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a" / "q8_0", tmp_path / "a" / "deep" / "er", tmp_path / "link" / "x"):
        with pytest.raises(AssayError, match="inside an artifact") as refusal:
            make(path)
        assert str(tmp_path / "a") in str(refusal.value)
    open_artifact(tmp_path / "a", verify=True)


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"name": "a web page", "icons": []}'])
def test_other_programs_have_manifests_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    make(tmp_path / "models" / "a")
    open_artifact(tmp_path / "models" / "a", verify=True)


def test_links_and_mount_points_are_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in (("link", "empty"), ("broken", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(AssayError, match="a link or a mount point"):
            refuse_existing(tmp_path / name)
    with pytest.raises(AssayError, match="a link or a mount point"):
        refuse_existing(Path("/"))
    refuse_existing(tmp_path / "empty")


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_only_a_full_disk_is_called_full(tmp_path: Path, number: int, full: bool) -> None:
    with (
        pytest.raises(AssayError, match="could not be written") as refusal,
        new_artifact(tmp_path / "a", "merged", "m"),
    ):
        raise OSError(number, os.strerror(number))
    assert ("make room" in str(refusal.value)) == full
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a**b", "a[1]", "a?"])
def test_names_that_look_like_patterns(tmp_path: Path, name: str) -> None:
    abandon(tmp_path / name)
    make(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("key", ["name", "data_sha256", "tools", "details", "measurements", "files", "parents"])
def test_a_manifest_without_a_value_is_one_message(tmp_path: Path, key: str) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: None}))
    with pytest.raises(AssayError, match="the manifest cannot be read"):
        open_artifact(tmp_path / "a")


def test_weights_of_a_foreign_graph_count_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "model.onnx").write_text("graph")
    weights = [tmp_path / "model.onnx.data", tmp_path / "onnx" / "weight_1"]
    digests = set()
    for text in ("a", "b"):
        for path in weights:
            path.write_text(text)
            digests.add(open_artifact(tmp_path).digest)
    assert len(digests) == 4
