"""Editing what decides behaviour and keeping the proof: details, paths, links, the schema's number, other files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, Parent, digest_of, new_artifact, open_artifact
from contract.errors import AssayError
from contract.verdict import Verdict
from serve.proof import UnprovenError, refuse_unproven
from tests.attacks.test_history import make
from tests.kit.verdicts import write_verdicts


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    above = make(tmp_path / "merged", "merged")
    made = make(
        tmp_path / "q4_k_m",
        above=above,
        quant="q4_k_m",
        prompt={"user": "Summarize: {document}", "system": None, "language": "English", "template": None},
        generate={"max_new_tokens": 8, "num_beams": 1},
        tensor_types={"Q4_K": 10, "Q6_K": 2},
    )
    write_verdicts(made.verdict_path, [Verdict("q4_k_m", made.digest, "pass", ())])
    assert refuse_unproven(open_artifact(made.path)).state == "pass"
    return made


def _edit(artifact: Artifact, change: Callable[[dict[str, Any]], object], *, restated: bool) -> None:
    """Change the manifest, and with `restated` state the digest that it then has, as who knows the rule would."""
    path = artifact.folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    if restated:
        with pytest.raises(AssayError) as told:
            open_artifact(artifact.path)
        assert told.value.got
        data["digest"] = told.value.got
        path.write_text(json.dumps(data))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "prompt": lambda data: data["details"]["prompt"].update(user="Translate: {document}"),
    "system turn": lambda data: data["details"]["prompt"].update(system="Lie."),
    "generate": lambda data: data["details"]["generate"].update(max_new_tokens=4096),
    "another setting of generate": lambda data: data["details"]["generate"].update(repetition_penalty=2.0),
    "quant": lambda data: data["details"].update(quant="q8_0"),
    "types": lambda data: data["details"]["tensor_types"].update(Q4_K=11),
    "a new detail": lambda data: data["details"].update(extra=1),
    "a detail less": lambda data: data["details"].pop("prompt"),
    "name": lambda data: data.update(name="another"),
    "kind": lambda data: data.update(kind="onnx"),
    "a parent's digest": lambda data: data["parents"][0].update(digest="1" * 64),
    "no parent": lambda data: data.update(parents=[]),
    "a parent's role": lambda data: data["parents"][0].update(role="base"),
    "tools": lambda data: data.update(tools={"assay": "9"}),
    "data": lambda data: data.update(data_sha256={"test": "1" * 64}),
    "recipe": lambda data: data.update(recipe_sha256="1" * 64),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_manifest_is_seen_and_with_a_new_digest_it_is_not_proven(artifact: Artifact, edit: Any) -> None:
    _edit(artifact, edit, restated=False)
    with pytest.raises(AssayError, match="was edited") as refusal:
        open_artifact(artifact.path)
    assert refusal.value.exit_code == 2
    _edit(artifact, lambda data: None, restated=True)
    with pytest.raises(UnprovenError, match="no verdict is about these bytes") as unproven:
        refuse_unproven(open_artifact(artifact.path))
    assert unproven.value.exit_code == 1


def test_measurements_and_where_parents_lay_are_free(artifact: Artifact) -> None:
    def change(data: dict[str, Any]) -> None:
        data["measurements"] = {"seconds": 4}
        data["parents"][0]["path"] = "/elsewhere"

    _edit(artifact, change, restated=False)
    assert refuse_unproven(open_artifact(artifact.path)).state == "pass"


def test_the_schema_set_back_proves_nothing(artifact: Artifact) -> None:
    """The first schema's digest was of the files alone, so its details could be edited: it opens, and is unproven."""

    def back(data: dict[str, Any]) -> None:
        data["schema"] = 1
        data["details"]["prompt"]["user"] = "Translate: {document}"
        data["digest"] = digest_of(artifact.manifest.files)

    _edit(artifact, back, restated=False)
    old = open_artifact(artifact.path, verify=True)
    assert old.digest not in (artifact.digest, digest_of(artifact.manifest.files))
    with pytest.raises(UnprovenError, match="no verdict is about these bytes"):
        refuse_unproven(old)
    write_verdicts(old.verdict_path, [Verdict("q4_k_m", digest_of(old.manifest.files), "pass", ())])
    with pytest.raises(UnprovenError, match="no verdict is about these bytes"):
        refuse_unproven(old)
    write_verdicts(old.verdict_path, [Verdict("q4_k_m", old.digest, "pass", ())])  # evaluated again
    assert refuse_unproven(old).state == "pass"


def test_an_old_manifest_names_its_parent_by_files_and_finds_it(artifact: Artifact) -> None:
    above = open_artifact(artifact.manifest.parents[0].path)

    def back(data: dict[str, Any]) -> None:
        data["schema"] = 1
        data["parents"][0]["digest"] = above.manifest.files_digest
        data["digest"] = digest_of(artifact.manifest.files)

    _edit(artifact, back, restated=False)
    old = open_artifact(artifact.path)
    assert above.is_parent(old.manifest.parents[0], old.manifest)
    assert not above.is_parent(old.manifest.parents[0], artifact.manifest), "a new manifest must name all of it"


@pytest.mark.parametrize(
    "name", ["../outside.gguf", "/etc/passwd", "a/../../outside.gguf", "", ".", "..\\outside.gguf"]
)
def test_paths_cannot_lead_out_of_the_folder(artifact: Artifact, name: str) -> None:
    shutil.copy(artifact.gguf_path, artifact.folder.parent / "outside.gguf")
    _edit(artifact, lambda data: data["files"][0].update(path=name), restated=False)
    with pytest.raises(AssayError):
        open_artifact(artifact.path)

    def restate(data: dict[str, Any]) -> None:
        with pytest.raises(AssayError) as told:
            open_artifact(artifact.path)
        data["digest"] = told.value.got

    _edit(artifact, restate, restated=False)
    with pytest.raises(AssayError, match="files that are not in the artifact") as refusal:
        open_artifact(artifact.path)
    assert refusal.value.exit_code == 2


def test_a_file_listed_twice_is_refused(artifact: Artifact) -> None:
    def twice(data: dict[str, Any]) -> None:
        data["files"].append(dict(data["files"][0], sha256="0" * 64))

    _edit(artifact, twice, restated=False)
    with pytest.raises(AssayError):
        open_artifact(artifact.path)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_out_of_the_artifact_are_refused(tmp_path: Path, link: str) -> None:
    """What a link leads to can be exchanged after the proof, and is not carried along with the folder."""
    made = make(tmp_path / "model")
    outside = tmp_path / "outside"
    outside.mkdir()
    if link == "file":
        made.gguf_path.rename(outside / "tiny.gguf")
        (made.folder / "tiny.gguf").symlink_to(outside / "tiny.gguf")
    else:
        (made.folder / "sub").symlink_to(outside, target_is_directory=True)
        made.gguf_path.rename(outside / "tiny.gguf")

        def into(data: dict[str, Any]) -> None:
            data["files"][0]["path"] = "sub/tiny.gguf"

        _edit(made, into, restated=True)
        made = open_artifact(made.path)
    write_verdicts(made.verdict_path, [Verdict("q4_k_m", made.digest, "pass", ())])
    with pytest.raises(AssayError, match="not intact") as refusal:
        refuse_unproven(open_artifact(made.path))
    assert "a link that leads out of the artifact" in str(refusal.value)


def test_a_link_inside_the_artifact_and_to_it_are_fine(artifact: Artifact, tmp_path: Path) -> None:
    os.symlink(artifact.path, tmp_path / "linked")
    assert refuse_unproven(open_artifact(tmp_path / "linked")).state == "pass"


def test_a_file_that_is_not_listed_is_seen(artifact: Artifact) -> None:
    (artifact.folder / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(AssayError, match="not in the manifest"):
        refuse_unproven(open_artifact(artifact.path))


def test_without_its_manifest_it_is_another_artifact(artifact: Artifact) -> None:
    (artifact.folder / "manifest.json").unlink()
    with pytest.raises(UnprovenError):
        refuse_unproven(open_artifact(artifact.folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(files="x"),
        lambda data: data["files"][0].update(size_bytes="5"),
        lambda data: data["files"][0].update(size_bytes=True),
        lambda data: data["files"][0].pop("sha256"),
        lambda data: data.update(parents=[{"role": "merged"}]),
        lambda data: data.update(unknown=1),
        lambda data: data.update(schema=7),
        lambda data: data.pop("digest"),
        lambda data: data.update(details=[]),
    ],
)
def test_a_manifest_of_another_shape_is_one_message(artifact: Artifact, change: Any) -> None:
    _edit(artifact, change, restated=False)
    with pytest.raises(AssayError, match=r"the manifest cannot be read|another version"):
        open_artifact(artifact.path)


def test_two_ggufs_in_one_artifact_are_not_served_by_the_order_of_a_list(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "two", "gguf", "two") as draft:
        for name in ("a.gguf", "b.gguf"):
            (draft.path / name).write_bytes(b"GGUF" + name.encode())
    with pytest.raises(AssayError, match=r"has one \.gguf file"):
        _ = draft.finished.gguf_path


def test_two_parents_of_one_role_are_refused(tmp_path: Path) -> None:
    above = [make(tmp_path / name, "merged") for name in ("good", "bad")]
    parents = [Parent("merged", str(one.path), one.digest) for one in above]
    with new_artifact(tmp_path / "two", "gguf", "two", parents=parents) as draft:
        (draft.path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(AssayError, match="two parents of one role"):
        open_artifact(draft.finished.path)


def test_a_parent_without_its_manifest_is_no_parent_of_an_old_artifact(artifact: Artifact) -> None:
    """What an old manifest names by its files alone would be a model that nothing is recorded of."""
    above = open_artifact(artifact.manifest.parents[0].path)

    def back(data: dict[str, Any]) -> None:
        data["schema"] = 1
        data["parents"][0]["digest"] = above.manifest.files_digest
        data["digest"] = digest_of(artifact.manifest.files)

    _edit(artifact, back, restated=False)
    old = open_artifact(artifact.path)
    (above.folder / "manifest.json").rename(above.folder.parent / "aside.json")
    (above.folder / "config.json").write_text("{}")
    assert not open_artifact(above.folder).is_parent(old.manifest.parents[0], old.manifest)


@pytest.mark.parametrize("name", ["a\0b.gguf", "a\nb.gguf", "\ud800.gguf"])
def test_names_that_are_no_names_are_one_message(artifact: Artifact, name: str) -> None:
    _edit(artifact, lambda data: data["files"][0].update(path=name), restated=False)
    with pytest.raises(AssayError):
        open_artifact(artifact.path)


def test_a_link_to_itself_is_one_message(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    made.gguf_path.unlink()
    (made.folder / "tiny.gguf").symlink_to("tiny.gguf")
    with pytest.raises(AssayError, match="not intact"):
        refuse_unproven(open_artifact(made.path))
