"""How large each type of the ladder would come out, and of which tensor types, before a single weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from contract.artifact import Artifact
from export.gguf_file import FloatType, exact_type, float_file, padded, plan_gguf, write_header
from export.gguf_write import matrix_notes
from export.imatrix import recorded_splits
from export.imatrix_file import ImportanceMatrix
from export.quantize import FLOATS, TypesFound, planned_types, tensor_bytes, types_of, uses_matrix
from export.source import open_model


@dataclass(frozen=True)
class PlannedFile:
    """A GGUF file that was not written: its size and its types."""

    size_bytes: int
    types: TypesFound


def planned_sizes(
    model: Artifact,
    quants: Sequence[str],
    *,
    with_matrix: bool,
    name: str | None = None,
    pre_tokenizer: str | None = None,
) -> tuple[FloatType, dict[str, PlannedFile]]:
    """Plan a GGUF of each type.

    Args:
        model: a merged artifact, a plain Hugging Face folder, or an adapter.
        quants: of the ladder.
        with_matrix: llama.cpp mixes some types otherwise with an importance matrix.
        name: of the file; the model's own by default.
        pre_tokenizer: as `export.to_gguf.export_gguf`.

    Returns:
        The float type that holds every weight as it is, and a plan per type.

    Raises:
        AssayError: the model cannot be expressed.
    """
    opened = open_model(model)
    with TemporaryDirectory(prefix="assay-plan-") as folder:
        source = opened.source(Path(folder))
        plan = plan_gguf(source, pre_tokenizer)
        exact = exact_type(source)
        outline = float_file(Path(folder) / "outline.gguf", plan, exact)
        noted = replace(outline, path=Path(folder) / "noted.gguf", notes=_notes(model))
        start, start_noted = (
            min(write_header(file, plan, source, name=name or model.name, license_name=source.license_name).values())
            for file in (outline, noted)
        )
        found = {}
        for quant in quants:
            floats = (float_file(outline.path, plan, kind).tensor_types for kind in FLOATS if kind == quant)
            types = next(floats, None) or planned_types(outline.path, quant, with_matrix=with_matrix)
            tensors = [(tensor.name, types[tensor.name], tensor.shape[::-1]) for tensor in plan.tensors]
            begin = start_noted if with_matrix and uses_matrix(quant) else start
            size = begin + sum(padded(tensor_bytes(kind, extents)) for _, kind, extents in tensors)
            found[quant] = PlannedFile(size, types_of(quant, tensors))
    return exact, found


def _notes(model: Artifact) -> dict[str, str | int]:
    """As long as those on the importance matrix will be."""
    text = f"{'train' if recorded_splits(model) else 'examples'} sha256:{'0' * 64}"
    return matrix_notes(ImportanceMatrix({}, 0, 0, 0, text))
