"""Attacks from the working folder: modules that lie there under our names, the libraries' or the standard library's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract.artifact import new_artifact, open_artifact
from contract.own_process import own_environment, own_module
from contract.prompt import PromptSpec
from evalsuite.speed import measure_speed
from runtimes import load_runtime

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
# what runs when a module of the folder is imported: it says so, and ends the process as if all had gone well
HOSTILE = "import os\nos.write(1, b'hostile\\n')\nos.close(os.open({marker!r}, os.O_CREAT))\nos._exit(0)\n"
OURS = ("assay", "contract", "evalsuite", "export", "flow", "runtimes", "serve", "trainer", "assets")
THEIRS = ("numpy", "json", "torch", "click", "pathlib", "llama_cpp", "transformers", "sitecustomize", "site")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with a hostile module of every name; `imported` appears once one is run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    text = HOSTILE.format(marker=str(tmp_path / "imported"))
    for number, name in enumerate((*OURS, *THEIRS)):
        if number % 2:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(text)
            (folder / name / "speed.py").write_text(text)
        else:
            (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path / "imported"


def test_the_folder_is_hostile_indeed(hostile: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "contract"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "hostile\n")
    assert hostile.exists()


def test_speed_is_measured_by_our_own_code(hostile: Path, llama_folder: Path) -> None:
    artifact = open_artifact(llama_folder)
    runtime = load_runtime(artifact, threads=1)
    prompt = runtime.encode(PromptSpec().messages("Mara: Is room 418 free?"))
    runtime.close()
    speed = measure_speed(artifact, [prompt], 1)
    assert (speed.documents, speed.prompt_tokens) == (1, len(prompt))
    assert not hostile.exists()


@pytest.mark.parametrize("path", ["", os.pathsep, f"{os.pathsep}{os.pathsep}/nowhere"])
def test_nor_do_further_processes_import_from_there(hostile: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """An empty entry of PYTHONPATH is the working folder too."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{path}")
    inner = "import contract, evalsuite, json; print(contract.__file__)"
    outer = f"{inner}; import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))"
    command = own_module("x")[:2]
    assert command == [sys.executable, "-P"]
    done = subprocess.run([*command, "-c", outer], capture_output=True, text=True, env=own_environment())
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [str(ROOT / "contract" / "__init__.py")] * 2
    assert not hostile.exists()


def test_the_command_that_the_readme_tells_people_to_type(hostile: Path, tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a", "merged", "a") as draft:
        (draft.path / "config.json").write_text("{}")
    assay = Path(sys.executable).with_name("assay")
    for arguments in (["--version"], ["inspect", str(tmp_path / "a")], ["run", "--help"], ["gate", str(tmp_path)]):
        done = subprocess.run([assay, *arguments], capture_output=True, text=True)
        assert "hostile" not in done.stdout
        assert done.returncode == (2 if arguments[0] == "gate" else 0), done.stderr
    assert not hostile.exists()


def test_every_process_of_ours_is_started_this_way() -> None:
    """Whoever starts Python by hand has to think of the working folder; here it is thought of."""
    found = {}
    for path in [ROOT / "assay.py", *(file for room in OURS[1:] for file in (ROOT / room).rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        if re.search(r"sys\.executable|multiprocessing|ProcessPool|os\.(exec|spawn|fork|system)|runpy", text):
            found[path.relative_to(ROOT).as_posix()] = text.count("sys.executable")
    # the command `assay` beside this interpreter; and the one place that says how our modules are run
    assert found == {"flow/demo.py": 1, "contract/own_process.py": 1}


def test_make_runs_our_modules_so_too() -> None:
    """But for what is not installed: benchmarks are run in the checkout, from its own folder."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    for line in lines:
        for module in re.findall(r"python (?:-P )?-m (\w+)", line):
            assert "-P -m" in line or module in ("venv", "pip", "pytest", "benchmarks"), line
    assert any("python -P -m" in line for line in lines)
