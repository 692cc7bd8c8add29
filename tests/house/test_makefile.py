"""`make` finds a Python that serves, says so where there is none, and asks for nothing that macOS lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with nothing to install."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def python(folder: Path, name: str, version: str, *, venv: bool = True) -> None:
    """A command that says it is that version; asked to make an environment it says so and fails with 7."""
    modules = "" if venv else "sys.modules['ensurepip'] = None; "
    fake = (
        f"import sys; sys.version_info = ({version}, 0, 'final', 0); {modules}"
        "code = sys.argv[2] if sys.argv[1] == '-c' else 'print(sys.argv[0], *sys.argv[1:]); sys.exit(7)'; exec(code)"
    )
    path = folder / "bin" / name
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{fake}" "$@"\n')
    path.chmod(0o755)


def setup(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`make setup` where only the folder's own commands and the system's few tools are found."""
    (folder / "tools").mkdir(exist_ok=True)
    for tool in ("sh", "make", "echo", "nproc", "cat"):
        if (found := shutil.which(tool)) and not (folder / "tools" / tool).exists():
            (folder / "tools" / tool).symlink_to(found)
    path = f"{folder / 'bin'}:{folder / 'tools'}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    return subprocess.run(
        ["make", "setup", *options], cwd=folder, env={**environment, "PATH": path}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.13": "3, 13"}, "python3.13"),
        ({"python3": "3, 12"}, "python3"),
        ({"python3": "3, 9", "python3.14": "3, 14"}, "python3.14"),
        ({"python3.11": "3, 11", "python3.13": "3, 13", "python3": "3, 13"}, "python3.11"),
    ],
)
def test_one_that_serves_is_taken(folder: Path, there: dict[str, str], taken: str) -> None:
    for name, version in there.items():
        python(folder, name, version)
    done = setup(folder)
    assert f'"{taken}" -m venv --clear .venv' in done.stdout
    assert "-c -m venv --clear .venv" in done.stdout  # and it was run
    assert done.returncode == 2


def test_a_name_that_does_not_run_is_passed_over(folder: Path) -> None:
    """As pyenv's shims of versions that are not chosen."""
    (folder / "bin" / "python3.11").write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    (folder / "bin" / "python3.11").chmod(0o755)
    python(folder, "python3.13", "3, 13")
    assert '"python3.13" -m venv' in setup(folder).stdout


@pytest.mark.parametrize("version", ["3, 10", "3, 15", "2, 7"])
def test_where_none_serves_it_says_what_is_needed(folder: Path, version: str) -> None:
    python(folder, "python3", version)
    done = setup(folder)
    assert done.returncode == 2
    assert "Assay needs Python 3.11 to 3.14" in done.stderr
    assert "PYTHON=" in done.stderr
    assert "-m venv" not in done.stdout
    assert not (folder / ".venv").exists()


def test_one_that_is_named_must_serve_too(folder: Path) -> None:
    python(folder, "python3.13", "3, 13")
    python(folder, "other", "3, 10")
    done = setup(folder, "PYTHON=other")
    assert done.returncode == 2
    assert "found none in: other" in done.stderr


def test_debians_python_without_venv_is_told_apart(folder: Path) -> None:
    python(folder, "python3", "3, 13", venv=False)
    done = setup(folder)
    assert done.returncode == 2
    assert "apt install python3-venv" in done.stderr


def test_the_versions_are_those_of_the_package(folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()  # type: ignore[union-attr]
    names = [f"python3.{minor}" for minor in range(int(low), int(high))]
    assert re.search(r"^PYTHONS := (.*)$", MAKEFILE, re.MULTILINE)[1].split() == [*names, "python3"]  # type: ignore[index]
    assert f"(3, {low}) <= sys.version_info < (3, {high})" in MAKEFILE
    classified = [line.rpartition(" :: ")[2] for line in project["classifiers"] if " :: Python :: 3." in line]
    assert [f"python{version}" for version in classified] == names


def test_help_lists_every_target_and_what_it_does() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for names, what in re.findall(r"^([a-z0-9 -]+):.*?## (.*)$", MAKEFILE, re.MULTILINE):
        assert re.search(rf"^{re.escape(names)} +{re.escape(what)}$", told, re.MULTILINE), names


def test_recipes_ask_for_no_option_that_only_gnu_tools_have() -> None:
    scripts = MAKEFILE + (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    gnu = (
        r"sed -[ir]|readlink -f|realpath|date -d|(cp|mkdir|rm|mv|sort|ls) --|grep -P|xargs -r|stat -c|timeout |\bfree\b"
    )
    assert re.findall(gnu, scripts) == []
    assert not re.search(r"find +-", MAKEFILE)  # BSD's find wants a folder


def test_the_workflow_runs_the_readmes_two_commands_on_every_system() -> None:
    import yaml

    [job] = yaml.safe_load((ROOT / ".github" / "workflows" / "readme.yml").read_text(encoding="utf-8"))["jobs"].values()
    commands = [step.get("run", "") for step in job["steps"]]
    assert {"make demo", "make test"} <= set(commands)
    systems, versions = job["strategy"]["matrix"]["system"], job["strategy"]["matrix"]["python"]
    assert [kind for kind in ("ubuntu", "-arm", "macos") if not any(kind in system for system in systems)] == []
    assert {"3.11", "3.13", "3.14"} <= set(versions)
