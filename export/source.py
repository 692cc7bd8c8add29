"""What an export reads: a folder's files and weights, with the artifact's parents and details."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, Parent
from contract.errors import AssayError
from contract.model_folder import read_json
from export.weights import FolderWeights, Weights


@dataclass(frozen=True)
class Source:
    """A model to export. `folder` holds config, tokenizer and generation config; `weights` may lie elsewhere."""

    folder: Path
    config: dict[str, Any]
    weights: Weights
    parents: tuple[Parent, ...]
    details: dict[str, Any]  # what the GGUF inherits: prompt, generate, trained_on …
    where: str  # for messages


def open_source(model: Artifact, scratch: Path) -> Source:
    """Open a merged or plain folder, or an adapter whose deltas are added while its base is read.

    Args:
        model: a merged artifact, a plain Hugging Face folder or an adapter.
        scratch: an empty folder for the side files of an adapter's merged form.

    Raises:
        AssayError: it is neither.
    """
    inherited = {key: model.details[key] for key in ("prompt", "generate", "trained_on", "merged_on")
                 if key in model.details}
    if model.kind == "merged":
        parent = Parent("merged", str(model.path.resolve()), model.digest)
        return Source(model.folder, read_json(model.folder / "config.json"), FolderWeights.open(model.folder),
                      (parent,), inherited, str(model.path))
    raise AssayError("this artifact cannot be exported to GGUF", where=str(model.path), got=model.kind,
                     expected="a merged or plain model folder, or an adapter")
