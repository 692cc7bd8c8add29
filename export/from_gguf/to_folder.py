"""A GGUF in, a model folder out: dequantized, rebuilt, and held against the GGUF before it gets its name."""

from __future__ import annotations

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import Artifact, Parent, new_artifact, open_artifact, refuse_existing, tool_versions
from contract.artifact_prompt import recorded_prompt
from contract.errors import AssayError, listed
from export.from_gguf.description import Dtype, describe, write_description
from export.from_gguf.header import FLOAT_TYPES, Header

if TYPE_CHECKING:
    import torch

    from export.from_gguf.weights import GgufWeights

_SCRATCH = ".scratch"
UNKNOWN_COST = (
    "what its quantization cost the model cannot be told from the file: no figure that is measured on this folder, or "
    "on what is made of it, counts it"
)


def import_gguf(
    path: Path, out: Path, *, dtype: Dtype = "float16", name: str | None = None, threads: int = 2
) -> Artifact:
    """Make a model folder of a GGUF: weights dequantized, configuration, tokenizer, template and stop ids rebuilt.

    The folder gets its name only when it was run beside the GGUF, and all of `export.from_gguf.check` agrees.

    Args:
        path: the .gguf file, or a folder of ours with one.
        out: the folder; must be new.
        dtype: stored dtype. Values are dequantized in float32 and rounded once.
        name: of the model; the file's by default.
        threads: CPU threads of the check.

    Returns:
        An artifact of kind "merged" whose parent is the GGUF. The same file gives the same digest.

    Raises:
        AssayError: the file is split, of an architecture or with a tokenizer that is not read, says something that is
            not understood, or holds values that overflow `dtype`; or `out` exists.
        CheckFailed: the folder does not do what the GGUF does. Nothing is left behind.
    """
    from export.from_gguf.check import check_folder
    from export.from_gguf.weights import take_tensors
    from export.parallel import one_torch_thread
    from export.reload import prove_reload
    from export.shards import PlannedTensor, write_shards
    from export.source import Source
    from export.weights import FolderWeights

    refuse_existing(out)
    gguf = open_artifact(path, verify=True)
    if gguf.kind != "gguf":
        raise AssayError("this is no GGUF", where=str(path), got=gguf.kind, expected="a .gguf file")
    described = describe(gguf, dtype)
    header, config, tokens = described.header, described.config, described.tokens
    details: dict[str, Any] = {"dtype": dtype, "imported": _provenance(header, gguf)}
    if described.license:
        details["license"] = described.license
    if (prompt := recorded_prompt(gguf)) is not None:
        details["prompt"] = prompt.as_dict()
    with new_artifact(
        out,
        "merged",
        name or gguf.gguf_path.stem,
        parents=[Parent("gguf", str(gguf.path.resolve()), gguf.digest)],
        tools=tool_versions("gguf", "llama-cpp-python", "torch", "transformers", "safetensors"),
        details=details,
    ) as draft:
        scratch = draft.path / _SCRATCH
        scratch.mkdir()
        print(f"reading {header.path.name}: {header.arch}, {_types(header)}", file=sys.stderr)
        weights = take_tensors(write_description(described, draft.path), header)
        rounding = _Rounding(weights, dtype)
        planned = [PlannedTensor(tensor, weights.shape(tensor), dtype) for tensor in weights.names()]
        with one_torch_thread():
            draft.hashed = write_shards(draft.path, planned, rounding.blocks)
        rounding.raise_problems(header.where)
        draft.details["imported"]["rounded"] = rounding.changed  # tensors that `dtype` does not hold exactly
        prove_reload(draft.path, dtype)
        print("running the GGUF and the folder side by side", file=sys.stderr)
        source = Source(draft.path, config, FolderWeights.open(draft.path), header.where, details, None)
        found = check_folder(source, header, weights, tokens, dtype=dtype, scratch=scratch, threads=threads)
        weights.close()
        draft.details["imported"]["extra_stop_ids"] = found.pop("extra_stop_ids")
        draft.measurements["check"] = found
        for note in tokens.notes:
            print(f"note: {note}", file=sys.stderr)
        shutil.rmtree(scratch)
    return draft.finished


class _Rounding:
    """Hands out dequantized rows in the stored dtype and collects what does not fit."""

    def __init__(self, weights: GgufWeights, dtype: Dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._overflows: dict[str, float] = {}
        self._not_finite: list[str] = []
        self.changed = 0

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor to store, some rows at a time."""
        import torch

        from export.finite import all_finite

        stored, exact = getattr(torch, self._dtype), True
        for _, rows in self._weights.blocks(name):
            rounded = rows.to(stored)
            if not all_finite(rounded):
                if bool(rows.isfinite().all()):
                    self._overflows[name] = max(self._overflows.get(name, 0.0), rows.abs().max().item())
                elif name not in self._not_finite:
                    self._not_finite.append(name)
            exact = exact and (stored == torch.float32 or torch.equal(rounded.float(), rows))
            yield rounded
        self.changed += not exact

    def raise_problems(self, where: str) -> None:
        """Raise what was collected."""
        if self._not_finite:
            raise AssayError("weights in the file are not finite", where=where, got=listed(self._not_finite, 20))
        if self._overflows:
            raise AssayError(
                f"weights of the file do not fit into {self._dtype}",
                where=where,
                expected="at most 65504" if self._dtype == "float16" else None,
                got=listed((f"{name} (max {value:g})" for name, value in self._overflows.items()), 20),
                hint="--dtype bfloat16 or --dtype float32" if self._dtype == "float16" else "--dtype float32",
            )


def _types(header: Header) -> str:
    counts = Counter(stored.kind for stored in header.tensors.values())
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def _provenance(header: Header, gguf: Artifact) -> dict[str, Any]:
    """What the folder was made of, for the manifest."""
    stored = header.tensors.values()
    values = sum(math.prod(one.shape) for one in stored)
    quantized = any(one.kind not in FLOAT_TYPES for one in stored)
    record = next(file for file in gguf.manifest.files if file.path == header.path.name)
    return {
        "file": header.path.name,
        "sha256": record.sha256,
        "architecture": header.arch,
        "bits_per_weight": round(sum(one.size_bytes for one in stored) * 8 / values, 4),
        "types": {name: one.kind for name, one in sorted(header.tensors.items())},
        **({"cost": UNKNOWN_COST} if quantized else {}),
    }
