"""Adapter and base into one model: merged in float32, cleaned, stored as asked, and reloaded to prove it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Parent, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError, listed
from contract.model_folder import license_of
from export.adapted import AdaptedWeights, BaseWeights, Block, open_adapted
from export.finite import all_finite
from export.parallel import one_torch_thread
from export.shards import SHARD_BYTES, PlannedTensor, write_shards

if TYPE_CHECKING:
    import torch

Dtype = Literal["float16", "bfloat16", "float32"]


def merge_adapter(
    adapter: Artifact,
    out: Path,
    *,
    dtype: Dtype = "float16",
    base_weights: BaseWeights = "w16",
    trained_on: BaseWeights | None = None,
    name: str | None = None,
    generate: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    base_choice: dict[str, Any] | None = None,
    activations: dict[str, Any] | None = None,
) -> Artifact:
    """Merge an adapter into its base in float32, some rows at a time, and round once to `dtype`.

    Args:
        adapter: Assay's own, or a plain PEFT folder, of a type that docs/adapters.md calls merged.
        out: the merged model's folder.
        dtype: stored dtype.
        base_weights: the base's stored weights, or those weights put through NF4 and back.
        trained_on: for an adapter that does not record what it was trained on.
        name: of the merged model; the adapter's by default.
        generate: how its summaries are written, recorded for those who serve it; by default as the adapter recorded it.
        shard_bytes: weights per file.
        base_choice: how `base_weights` was chosen, for the manifest.
        activations: the largest value that was seen to flow through the merged model, for the manifest.

    Returns:
        The merged artifact; merging the same again gives the same digest.

    Raises:
        AssayError: a wrong base, keys without a place, a delta that is zero or not finite, an overflow. Tensors are
            all named.
    """
    from export.clean import Cleaner
    from export.reload import prove_reload

    refuse_existing(out)
    model = open_adapted(adapter, base_weights=base_weights, trained_on=trained_on)
    weights = model.weights
    parents = (model.base, Parent("adapter", str(adapter.path.resolve()), adapter.digest))
    details: dict[str, Any] = {key: adapter.details[key] for key in ("prompt", "generate") if key in adapter.details}
    if generate is not None:
        details["generate"] = generate
    if found := license_of(model.base_folder):
        details["license"] = found
    tools = tool_versions(
        "torch", "transformers", "peft", "safetensors", *(["bitsandbytes"] if base_weights == "nf4" else [])
    )
    with new_artifact(out, "merged", name or adapter.name, parents=parents, tools=tools, details=details) as draft:
        print(f"merging {adapter.name} onto {model.base.path} ({base_weights.upper()})", file=sys.stderr)
        changes = Cleaner(model.base_folder, adapter.folder, draft.path).write_all(
            dtype=dtype, tied=weights.tied, rows=weights.rows
        )
        if weights.skeleton.tied and not weights.tied:
            why = (
                "transformers 4 would scale what comes before a tied one"
                if weights.skeleton.tied_unscaled
                else "the adapter made it differ from the input embeddings"
            )
            changes.append(f"{weights.skeleton.head}: written, {why}")
        rounding = _Rounding(weights, dtype)
        with one_torch_thread():
            draft.hashed = write_shards(draft.path, rounding.planned(), rounding.blocks, shard_bytes)
        rounding.raise_problems(str(adapter.path))
        prove_reload(draft.path, dtype)
        draft.details |= {"dtype": dtype, "merged_on": base_weights, "cleaning": changes}
        if base_choice is not None:
            draft.measurements["base_choice"] = base_choice
        if activations is not None:
            draft.measurements["activations"] = activations
        if model.trained_on is not None:
            draft.details["trained_on"] = model.trained_on
        if rounding.unchanged:
            draft.details["rounded_away"] = rounding.unchanged
            print(
                f"note: {len(rounding.unchanged)} of {len(weights.changed_names())} changes vanish when rounded to "
                f"{dtype}: {listed(rounding.unchanged)}",
                file=sys.stderr,
            )
    return draft.finished


class _Rounding:
    """Hands out merged rows in the stored dtype and collects what is wrong with them."""

    def __init__(self, weights: AdaptedWeights, dtype: Dtype) -> None:
        self.weights, self.dtype = weights, dtype
        self.problems: list[str] = []
        self.overflows: list[str] = []
        self.unchanged: list[str] = []  # changed by the adapter, but not by as much as the stored dtype can hold

    def planned(self) -> list[PlannedTensor]:
        """Every tensor that is written."""
        return [PlannedTensor(name, self.weights.shape(name), self.dtype) for name in self.weights.names()]

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor to store, some rows at a time."""
        import torch

        stored = getattr(torch, self.dtype)
        same = name in self.weights.adapter.changes
        worst: Block | None = None
        for block in self.weights.before_and_after(name):
            rounded = block.merged.to(stored)
            if worst is None and not all_finite(rounded):
                worst = block
            same = same and torch.equal(rounded, block.before.to(stored))
            yield rounded
        if worst is not None:
            self._note(name, worst)
        elif same:
            self.unchanged.append(name)

    def _note(self, name: str, block: Block) -> None:
        """Why the first rows that are not finite are not."""
        if not bool(block.before.isfinite().all()):
            self.problems.append(f"{name}: the base's weights are not finite")
        elif not bool(block.merged.isfinite().all()):
            self.problems.append(f"{name}: the delta is not finite")
        else:
            self.overflows.append(f"{name} (max {block.merged.abs().max().item():g})")

    def raise_problems(self, where: str) -> None:
        """Raise what was collected."""
        if self.problems:
            raise AssayError("the merge is not finite", where=where, got=listed(self.problems, 20))
        if self.overflows:
            raise AssayError(
                f"merged weights do not fit into {self.dtype}",
                where=where,
                expected=f"at most {65504 if self.dtype == 'float16' else 3.39e38:g}",
                got=listed(self.overflows, 20),
                hint="--dtype bfloat16 or --dtype float32" if self.dtype == "float16" else "--dtype float32",
            )
        adapter = self.weights.adapter
        changed = set(self.weights.names()) & set(adapter.changes)  # a head that stays tied is not stored
        if changed == set(self.unchanged) and not any(map(self._differs, adapter.replaced)):
            raise AssayError(
                f"the adapter changes nothing: every delta vanishes when rounded to {self.dtype}",
                where=where,
                hint="--dtype float32" if self.dtype != "float32" else "was it trained?",
            )

    def _differs(self, name: str) -> bool:
        """Is what takes this tensor's place another than the base's?"""
        import torch

        own, place = self.weights.base, self.weights.place(name)
        key, brought = self.weights.adapter.replaced[name], self.weights.adapter.weights
        if own.shape(place) != brought.shape(key):
            return True
        stored = getattr(torch, self.dtype)
        pairs = zip(own.blocks(place), brought.blocks(key), strict=True)
        return any(not torch.equal(before.to(stored), after.to(stored)) for (_, before), (_, after) in pairs)
