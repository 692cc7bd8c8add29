"""A base that is a GGUF: a run makes a model folder of it first, and trains on that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import Artifact, open_artifact

if TYPE_CHECKING:
    from contract.recipe import Recipe


def gguf_base(recipe: Recipe) -> Artifact | None:
    """The recipe's base, where it is a .gguf or a folder of one; None where it is a model folder or on the hub.

    Raises:
        AssayError: it lies here and cannot be opened.
    """
    path = Path(recipe.model.base)
    if not path.exists() or (path / "config.json").is_file():
        return None
    base = open_artifact(path)
    return base if base.kind == "gguf" else None


def on_folder(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe on the model folder that was made of its base."""
    model = {"base": str(folder.resolve()), "revision": None, "package": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})
