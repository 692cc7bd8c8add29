"""What has moved since it was tried, and what of it is not allowed."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from contract.own_process import own_environment, own_module
from flow.drift import Asked, asked_for, drift, drift_here, installed, tried_versions

ROOT = Path(__file__).resolve().parents[2]
TRIED = {"torch": "2.13.0", "Some_Lib": "1.4", "onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1", "ruff": "0.17"}
HERE = {"torch": "2.13.0+cpu", "some-lib": "1.4.0", "onnxruntime": "1.31.1", "ruff": "0.17"}


def asked(**by_extra: str) -> Asked:
    lines = {
        "train": "torch>=2.6",
        "serve": "some-lib>=1,<2",
        "cpu": "onnxruntime>=1.23",
        "gpu": "onnxruntime-gpu>=1.23",
    }
    return Asked(">=3.11,<3.15", {extra: [Requirement(line)] for extra, line in {**lines, **by_extra}.items()})


def test_the_same_versions_are_no_drift_however_they_were_built_or_spelled() -> None:
    found = drift(HERE, TRIED, asked(), "3.13.2")
    assert (found.newer, found.older, found.missing, found.outside) == ({}, {}, (), ())
    assert found.lines() == ["drift       none: all packages are of the versions that were tried"]


@pytest.mark.parametrize("version", ["1.5", "1.4.1", "1.10", "1.5.0rc1"])
def test_newer(version: str) -> None:
    found = drift({**HERE, "some-lib": version}, TRIED, asked(), "3.13.2")
    assert found.newer == {"Some_Lib": (version, "1.4")}
    assert (found.older, found.outside) == ({}, ())
    assert found.lines() == [f"newer       Some_Lib {version}, 1.4 was tried"]


@pytest.mark.parametrize("version", ["1.3.9", "1.4rc1"])
def test_older(version: str) -> None:
    found = drift({**HERE, "some-lib": version}, TRIED, asked(), "3.13.2")
    assert found.older == {"Some_Lib": (version, "1.4")}
    assert (found.newer, found.outside) == ({}, ())


def test_missing_is_what_an_extra_for_running_asks_for() -> None:
    here = {name: version for name, version in HERE.items() if name not in ("some-lib", "ruff")}
    found = drift(here, TRIED, asked(dev="ruff"), "3.13.2")
    assert found.missing == ("Some_Lib",)
    assert found.outside == ()


@pytest.mark.parametrize(
    ("there", "missing"), [("onnxruntime", ()), ("onnxruntime-gpu", ()), ("neither", ("onnxruntime",))]
)
def test_one_of_the_two_onnxruntimes_is_enough(there: str, missing: tuple[str, ...]) -> None:
    here = {name: version for name, version in HERE.items() if name != "onnxruntime"} | {there: "1.31.1"}
    assert drift(here, TRIED, asked(), "3.13.2").missing == missing


def test_outside_what_is_allowed_is_said_of_packages_and_of_python() -> None:
    found = drift({**HERE, "some-lib": "2.0", "torch": "2.5.1+cpu"}, TRIED, asked(), "3.15.0")
    assert [line.split(" is outside")[0] for line in found.outside] == [
        "Python 3.15.0",
        "torch 2.5.1+cpu",
        "some-lib 2.0",
    ]
    assert ">=3.11" in found.outside[0]
    assert "2.13.0 was tried" in found.outside[1]
    assert set(found.newer) == {"Some_Lib"}


def distribution(folder: Path, name: str, version: str, *more: str) -> None:
    """A package as an installer notes it."""
    noted = folder / f"{name}-{version}.dist-info"
    noted.mkdir(parents=True)
    (noted / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *more]))


def test_what_is_installed_is_what_would_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "first", "Some.Lib", "2.0")
    distribution(tmp_path / "second", "some_lib", "1.0")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert installed()["some-lib"] == "2.0"


def test_lines_for_another_python_or_system_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(
        "# a comment\n\na==1.0  # another\nb==2.0; python_version >= '3.11'\nb==3.0; python_version < '3.11'\n"
        "c==1; sys_platform == 'amiga'\n"
    )
    assert tried_versions(tmp_path / "c.txt") == {"a": "1.0", "b": "2.0"}


def test_a_wheel_is_asked_what_it_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(
        tmp_path,
        "assay",
        "0.1.0",
        "Requires-Python: >=3.11,<3.15",
        "Provides-Extra: serve",
        "Provides-Extra: train",
        "Requires-Dist: click>=8.1",
        'Requires-Dist: torch>=2.6; extra == "train"',
        'Requires-Dist: nothing>=1; sys_platform == "amiga" and extra == "train"',
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = asked_for(tmp_path / "no pyproject.toml")
    assert found.python == ">=3.11,<3.15"
    names = {extra: [each.name for each in requirements] for extra, requirements in found.by_extra.items()}
    assert names == {"": ["click"], "serve": [], "train": ["torch"]}


def test_a_checkout_is_asked_itself() -> None:
    found = asked_for()
    assert found.python == ">=3.11,<3.15"
    assert {"", "train", "export", "serve", "eval", "cpu", "gpu", "dev", "bertscore"} == set(found.by_extra)
    assert any(each.name == "transformers" for each in found.by_extra["train"])


def test_the_versions_that_were_tried_are_shipped_and_are_those_that_pip_takes() -> None:
    import tomllib

    shipped, taken = ROOT / "flow" / "constraints.txt", ROOT / "constraints.txt"
    assert shipped.read_bytes() == taken.read_bytes()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "constraints.txt" in project["tool"]["setuptools"]["package-data"]["flow"]
    tried = tried_versions()
    for extra, requirements in asked_for().by_extra.items():
        for each in requirements:
            pins = [pin for name, pin in tried.items() if name.lower().replace("_", "-") == each.name.lower()]
            assert pins, f"{extra}: {each.name} is not in constraints.txt"
            assert each.specifier.contains(pins[0], prereleases=True), f"{extra}: {each} was tried as {pins[0]}"


def test_a_newer_package_is_told_and_one_that_is_not_allowed_ends_in_2(tmp_path: Path) -> None:
    """In an environment where a package of that version stands before the others."""

    def said(name: str, version: str) -> tuple[int, str]:
        folder = tmp_path / name
        distribution(folder, name, version)
        environment = own_environment()
        environment["PYTHONPATH"] += f":{folder}"
        done = subprocess.run(own_module("flow.drift"), capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout

    code, out = said("evaluate", "99.0")
    assert f"newer       evaluate 99.0, {tried_versions()['evaluate']} was tried" in out
    assert code == (2 if drift_here().outside else 0)
    code, out = said("transformers", "6.0.0")
    assert code == 2
    assert "outside     transformers 6.0.0 is outside what Assay asks for: <6,>=5.2" in out


def test_this_interpreter_knows_its_packages() -> None:
    assert installed()["pytest"] == metadata.version("pytest")


@pytest.mark.engine
def test_the_doctor_tells_it_and_minds_only_what_is_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flow.doctor
    from flow.doctor import as_text, examine

    trip = {"problem": None, "tokens": 8, "bits_per_weight": 4.5, "seconds": 1.0}
    monkeypatch.setattr(flow.doctor, "_round_trip", lambda: trip)  # it has tests of its own, and takes long
    distribution(tmp_path, "evaluate", "99.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = examine()
    assert found["drift"]["newer"]["evaluate"] == ("99.0", tried_versions()["evaluate"])
    assert not [each for each in found["problems"] if "evaluate" in each]
    assert "newer       evaluate 99.0" in as_text(found)
    distribution(tmp_path, "ruff", "0.1.0")
    found = examine()
    assert [each for each in found["problems"] if each.startswith("ruff 0.1.0 is outside")]
    assert as_text(json.loads(json.dumps(found))) == as_text(found)
