"""What an export reads: a folder's files and weights, with the artifact's parents and details."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, Parent
from contract.errors import AssayError
from contract.model_folder import license_of, read_json
from export.weights import FolderWeights, Weights


@dataclass(frozen=True)
class Source:
    """A model to export. `folder` holds config, tokenizer and generation config; `weights` may lie elsewhere."""

    folder: Path
    config: dict[str, Any]
    weights: Weights
    where: str  # for messages
    details: dict[str, Any]  # what an export inherits: prompt, generate, trained_on …
    license_name: str | None

    @property
    def all_float16(self) -> bool:
        """Can float16 hold every weight as it is?"""
        return all(self.weights.dtype(name) == "F16" for name in self.weights.names())


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights and parents are known; `source` writes the files an adapter's merged form still needs."""

    parents: tuple[Parent, ...]
    details: dict[str, Any]
    source: Callable[[Path], Source]  # takes an empty folder for side files


def open_model(model: Artifact) -> OpenedModel:
    """Open a merged or plain folder, or an adapter whose deltas are added while its base is read.

    Raises:
        AssayError: it is neither, its files are not intact, or the adapter does not fit its base.
    """
    kept = ("prompt", "generate", "license", "trained_on", "merged_on")
    inherited: dict[str, Any] = {key: model.details[key] for key in kept if key in model.details}
    if not model.foreign:
        model.verify()
    if model.kind == "merged":
        weights = FolderWeights.open(model.folder)
        config = read_json(model.folder / "config.json")
        parent = Parent("merged", str(model.path.resolve()), model.digest)
        return OpenedModel(
            (parent,),
            inherited,
            lambda scratch: Source(
                model.folder,
                config,
                weights,
                str(model.path),
                inherited,
                model.details.get("license") or license_of(model.folder),
            ),
        )
    if model.kind == "adapter":
        return _open_adapter(model, {**inherited, "merged_on": "w16"})
    raise AssayError(
        "this artifact cannot be exported",
        where=str(model.path),
        got=model.kind,
        expected="a merged or plain model folder, or an adapter",
        hint="of a folder that holds graphs beside its weights, copy all but the graphs into one of its own"
        if model.kind == "onnx"
        else None,
    )


def say_trained_on_nf4(adapter: Artifact) -> None:
    """Note that an adapter which records NF4 goes onto its base's stored weights here."""
    if (adapter.details.get("trained_on") or {}).get("quant") == "nf4":
        print(
            "note: the adapter was trained on its base in NF4 and goes onto the 16-bit base here; which of the two "
            f"comes nearer, `assay merge {shlex.quote(str(adapter.path))} --base auto --out DIR` measures",
            file=sys.stderr,
        )


def _open_adapter(model: Artifact, details: dict[str, Any]) -> OpenedModel:
    from export.adapted import open_adapted
    from export.clean import Cleaner

    adapted = open_adapted(model)
    weights = adapted.weights

    def source(scratch: Path) -> Source:
        Cleaner(adapted.base_folder, model.folder, scratch).write_all(
            dtype="float32", tied=weights.tied, rows=weights.rows
        )
        return Source(
            scratch,
            read_json(scratch / "config.json"),
            weights,
            str(model.path),
            details,
            license_of(adapted.base_folder),
        )

    parents = (Parent("adapter", str(model.path.resolve()), model.digest), adapted.base)
    return OpenedModel(parents, details, source)
