"""What failed its check is kept whole beside its place, overwrites nothing, and is never opened."""

from __future__ import annotations

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from contract.artifact import MANIFEST_FILE, new_artifact, open_artifact
from contract.errors import AssayError
from contract.failed import FAILED_FILE, Failure
from contract.set_aside import set_aside

WRONG = Failure("mean_kl_nats", "mean_kl_nats 3.2 nats, at most 0.1", 3.2, 0.1)


def fail(place: Path, text: str = "GGUF and more", failure: Failure = WRONG) -> Path:
    asides = []
    with suppress(ZeroDivisionError), new_artifact(place, "gguf", "m", details={"quant": "q8_0"}) as draft:
        (draft.path / "m.gguf").write_text(text)
        (draft.path / ".scratch").mkdir()
        (draft.path / ".scratch" / "large").write_text("working")
        draft.measurements["logits"] = {"mean_kl_nats": failure.figure}
        asides.append(set_aside(draft, [failure]))
        raise ZeroDivisionError
    return asides[0]


def record(aside: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((aside / FAILED_FILE).read_text(), parse_constant=lambda text: 1 / 0)
    return found


def test_it_lies_beside_its_place_with_a_record_and_no_manifest(tmp_path: Path) -> None:
    aside = fail(tmp_path / "q8_0")
    assert aside == tmp_path / "q8_0.failed"
    assert list(tmp_path.iterdir()) == [aside]
    assert sorted(path.name for path in aside.iterdir()) == [FAILED_FILE, "m.gguf"]
    told = record(aside)
    assert told["failures"] == [
        {"code": "mean_kl_nats", "text": WRONG.text, "figure": 3.2, "limit": 0.1},
    ]
    assert (told["kind"], told["name"], told["details"]) == ("gguf", "m", {"quant": "q8_0"})
    with new_artifact(tmp_path / "q8_0", "gguf", "m") as draft:
        (draft.path / "m.gguf").write_text("GGUF")
    assert open_artifact(tmp_path / "q8_0", verify=True).name == "m"


@pytest.mark.parametrize("name", ["", "m.gguf", FAILED_FILE])
def test_it_is_not_opened(tmp_path: Path, name: str) -> None:
    aside = fail(tmp_path / "q8_0")
    with pytest.raises(AssayError, match="failed its check") as refusal:
        open_artifact(aside / name)
    assert refusal.value.exit_code == 2
    assert "mean_kl_nats 3.2 nats, at most 0.1" in str(refusal.value)
    assert str(aside / FAILED_FILE) in str(refusal.value)


def test_nor_through_a_link_nor_with_a_manifest_in_it(tmp_path: Path) -> None:
    aside = fail(tmp_path / "q8_0")
    for name, target in (("folder", aside), ("file.gguf", aside / "m.gguf")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(AssayError, match="failed its check"):
            open_artifact(tmp_path / name)
    with new_artifact(tmp_path / "q8_0", "gguf", "m") as draft:
        (draft.path / "m.gguf").write_text("GGUF")
    shutil.copy(tmp_path / "q8_0" / MANIFEST_FILE, aside)
    with pytest.raises(AssayError, match="failed its check"):
        open_artifact(aside)


def test_a_damaged_record_still_refuses(tmp_path: Path) -> None:
    aside = fail(tmp_path / "q8_0")
    for text in ("{", '{"schema": 1, "kind": "gguf", "files": [], "failures": 5}'):
        (aside / FAILED_FILE).write_text(text)
        with pytest.raises(AssayError, match="does not say why"):
            open_artifact(aside)


@pytest.mark.parametrize("text", ["[]", "5", '{"tests": 3}'])
def test_other_programs_have_such_files_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / FAILED_FILE).write_text(text)
    assert open_artifact(tmp_path / "m.gguf").foreign


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "q8_0.failed").mkdir()
    (tmp_path / "q8_0.failed" / "mine").write_text("mine")
    (tmp_path / "q8_0.failed-2").symlink_to("nowhere")
    assert fail(tmp_path / "q8_0") == tmp_path / "q8_0.failed-3"
    assert fail(tmp_path / "q8_0", "other bytes") == tmp_path / "q8_0.failed-4"
    assert [path.name for path in (tmp_path / "q8_0.failed").iterdir()] == ["mine"]
    assert (tmp_path / "q8_0.failed-3" / "m.gguf").read_text() == "GGUF and more"
    assert os.readlink(tmp_path / "q8_0.failed-2") == "nowhere"


def test_the_same_files_are_kept_once(tmp_path: Path) -> None:
    first = fail(tmp_path / "q8_0")
    (first / "notes.txt").write_text("mine")
    assert fail(tmp_path / "q8_0", failure=Failure("max_abs", "max_abs 9", 9.0, 1.0)) == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert (first / "notes.txt").read_text() == "mine"
    assert [row["code"] for row in record(first)["failures"]] == ["max_abs"]  # type: ignore[attr-defined]
    (first / "m.gguf").write_text("GGUF and MORE")
    assert fail(tmp_path / "q8_0") == tmp_path / "q8_0.failed-2"
    assert (first / "m.gguf").read_text() == "GGUF and MORE"


def test_figures_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    told = record(fail(tmp_path / "q8_0", failure=Failure("max_abs", "max_abs nan", math.nan, 1.0)))
    assert told["failures"] == [{"code": "max_abs", "text": "max_abs nan", "figure": None, "limit": 1.0}]
    assert told["measurements"] == {"logits": {"mean_kl_nats": None}}
