"""How far the installed versions have moved from those that Assay was tried with, and whether that is allowed.

`python -m flow.drift` prints it. Tried: constraints.txt, which is shipped with the package. Allowed: what
pyproject.toml asks for, the Python version included.
"""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "assay"
_HERE = Path(__file__).resolve().parent
_NOT_FOR_RUNNING = {"dev", "bertscore"}  # extras whose packages are not missed
_ONE_OF = {"onnxruntime", "onnxruntime-gpu"}  # one module under two names; neither there: the first is missed


@dataclass(frozen=True)
class Asked:
    """What Assay asks for: a specifier of the Python version, and requirements by extra, "" for none."""

    python: str
    by_extra: Mapping[str, Sequence[Requirement]]


@dataclass(frozen=True)
class Drift:
    """Installed against tried, names as constraints.txt has them.

    `newer` and `older` map a package to (installed, tried). `missing` was tried and is asked for, but is not installed.
    `outside` says, one sentence a package, what is outside of what is allowed.
    """

    newer: dict[str, tuple[str, str]]
    older: dict[str, tuple[str, str]]
    missing: tuple[str, ...]
    outside: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a person; what is outside is not among them, for it is a problem."""
        found = [f"newer       {name} {here}, {tried} was tried" for name, (here, tried) in self.newer.items()]
        found += [f"older       {name} {here}, {tried} was tried" for name, (here, tried) in self.older.items()]
        found += [f"missing     {', '.join(self.missing)}"] if self.missing else []
        return found or ["drift       none: all packages are of the versions that were tried"]


def drift_here() -> Drift:
    """Of this environment."""
    return drift(installed(), tried_versions(), asked_for(), platform.python_version())


def drift(here: Mapping[str, str], tried: Mapping[str, str], asked: Asked, python: str) -> Drift:
    """Compare.

    Args:
        here: package -> installed version, names as `canonical` has them.
        tried: package -> version.
        asked: what is allowed.
        python: the running version.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    newer: dict[str, tuple[str, str]] = {}
    older: dict[str, tuple[str, str]] = {}
    for name, wanted in sorted(tried.items(), key=lambda item: item[0].lower()):
        found = here.get(canonical(name))
        if found is not None and Version(_public(found)) != Version(_public(wanted)):
            (newer if Version(found) > Version(wanted) else older)[name] = (found, wanted)
    missed, outside = set(), []
    if not SpecifierSet(asked.python).contains(python, prereleases=True):
        outside.append(f"Python {python} is outside what Assay asks for: {asked.python}")
    for extra, requirements in asked.by_extra.items():
        for requirement in requirements:
            found = here.get(canonical(requirement.name))
            if found is None and extra not in _NOT_FOR_RUNNING:
                missed.add(canonical(requirement.name))
            elif found is not None and not requirement.specifier.contains(_public(found), prereleases=True):
                outside.append(
                    f"{requirement.name} {found} is outside what Assay asks for: {requirement.specifier}; "
                    f"{tried.get(requirement.name, 'another')} was tried"
                )
    missed -= _ONE_OF if _ONE_OF & set(here) else {"onnxruntime-gpu"}
    missing = tuple(name for name in sorted(tried, key=str.lower) if canonical(name) in missed)
    return Drift(newer, older, missing, tuple(dict.fromkeys(outside)))


def installed() -> dict[str, str]:
    """Every package that this interpreter finds -> its version; the first on the path counts, as for an import."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]  # a half removed package has none
        if name and each.version:
            found.setdefault(canonical(name), each.version)
    return found


def tried_versions(constraints: Path = _HERE / "constraints.txt") -> dict[str, str]:
    """Package -> version, of the lines of constraints.txt that are meant for this Python and system."""
    from packaging.requirements import Requirement

    found = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            [pin] = requirement.specifier
            found[requirement.name] = pin.version
    return found


def asked_for(sources: Path = _HERE.parent / "pyproject.toml") -> Asked:
    """What a checkout's pyproject.toml says, else what was noted when the package was installed.

    The metadata of an editable install is as old as that install; the sources may have moved on since.
    """
    from packaging.requirements import Requirement

    if sources.is_file():
        project = tomllib.loads(sources.read_text(encoding="utf-8"))["project"]
        lists = {"": project["dependencies"], **project["optional-dependencies"]}
        read = {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}
        return Asked(project["requires-python"], {extra: _meant_here(lines) for extra, lines in read.items()})
    noted = metadata.metadata(PACKAGE)
    every = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    plain = _meant_here(every)
    by_extra = {
        extra: [each for each in _meant_here(every, extra) if each not in plain]
        for extra in noted.get_all("Provides-Extra") or []
    }
    return Asked(noted["Requires-Python"] or "", {"": plain, **by_extra})


def _meant_here(requirements: Sequence[Requirement], extra: str = "") -> list[Requirement]:
    """Those for this Python and system, where this extra is asked for."""
    return [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]


def canonical(name: str) -> str:
    """One spelling of a package's name, as installers compare them (PEP 503)."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _public(version: str) -> str:
    """Without the part that says how it was built: 2.13.0+cpu is 2.13.0."""
    from packaging.version import Version

    return Version(version).public


if __name__ == "__main__":
    found_here = drift_here()
    print("\n".join([*found_here.lines(), *(f"outside     {each}" for each in found_here.outside)]))
    sys.exit(2 if found_here.outside else 0)
