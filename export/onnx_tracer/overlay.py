"""The folder with Optimum and the transformers it needs: where it lies, what is in it, and how it is filled.

optimum-onnx holds transformers below 4.58, Assay needs 5. One environment cannot have both, so these few packages lie
in a folder of their own inside it, and only the process that traces sees that folder. Run as a module, this fills it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from contract.errors import AssayError
from contract.own_process import own_environment, own_module

PACKAGES = Path(__file__).with_name("packages.txt")
VARIABLE = "ASSAY_ONNX_TRACER"
FILL = "python -P -m export.onnx_tracer.overlay"


def overlay() -> Path:
    """The folder: what the environment variable ASSAY_ONNX_TRACER names, or onnx-tracer/ in Python's environment."""
    return Path(os.environ.get(VARIABLE) or Path(sys.prefix) / "onnx-tracer")


def overlay_versions() -> dict[str, str]:
    """The version of each package that traces, by its name; {} where the folder is not there."""
    found = metadata.distributions(path=[str(overlay())])
    return {name: one.version for one in found if (name := one.metadata["Name"].replace("_", "-")) in pinned_versions()}


def overlay_environment() -> dict[str, str]:
    """The environment of a process that sees these packages before all others.

    Raises:
        AssayError: the folder lacks one of them, or has another version of it.
    """
    found, wanted = overlay_versions(), pinned_versions()
    if found != wanted:
        raise AssayError(
            "exporting to ONNX needs packages that are not in their folder",
            where=str(overlay()),
            expected=", ".join(f"{name} {version}" for name, version in sorted(wanted.items())),
            got=", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "none of them",
            hint=f"make setup, or in an environment of your own: {FILL}",
        )
    environment = own_environment()
    return {**environment, "PYTHONPATH": os.pathsep.join([str(overlay()), environment["PYTHONPATH"]])}


def fill() -> None:
    """Install the packages, without what they need: the environment has it.

    Raises:
        AssayError: pip could not.
    """
    options = ["--quiet", "--no-deps", "--upgrade", "--target", str(overlay()), "--requirement", str(PACKAGES)]
    done = subprocess.run(own_module("pip", "install", *options), env=own_environment(), check=False)
    if done.returncode:
        raise AssayError("pip could not install what traces models", where=str(overlay()), got="see above")


def pinned_versions() -> dict[str, str]:
    """The version that each package must have, by its name."""
    lines = PACKAGES.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.replace("_", "-"): version for name, version in pairs}


if __name__ == "__main__":
    try:
        fill()
    except AssayError as error:
        sys.exit(str(error))
