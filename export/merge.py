"""Adapter and base into one model: merged in float32, cleaned, stored as asked, and reloaded to prove it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Parent, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError, listed
from contract.model_folder import license_of
from export.adapted import EMBEDDING, AdaptedWeights, BaseWeights, open_adapted
from export.weights import PlannedTensor, write_shards

if TYPE_CHECKING:
    import torch

Dtype = Literal["float16", "bfloat16", "float32"]
SHARD_BYTES = 5_000_000_000


def merge_adapter(
    adapter: Artifact,
    out: Path,
    *,
    dtype: Dtype = "float16",
    base_weights: BaseWeights = "w16",
    trained_on: BaseWeights | None = None,
    name: str | None = None,
    max_new_tokens: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Artifact:
    """Merge a LoRA adapter into its base: W + scale·B·A in float32, then rounded to `dtype`.

    Args:
        adapter: Assay's own, or a plain PEFT folder.
        out: the merged model's folder.
        dtype: stored dtype.
        base_weights: the base's stored weights, or those weights put through NF4 and back.
        trained_on: for an adapter that does not record what it was trained on.
        name: of the merged model; the adapter's by default.
        max_new_tokens: recorded for those who serve it; what the adapter recorded by default.
        shard_bytes: weights per file.

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
    if max_new_tokens is not None:
        details["generate"] = {"max_new_tokens": max_new_tokens}
    if found := license_of(model.base_folder):
        details["license"] = found
    tools = tool_versions(
        "torch", "transformers", "peft", "safetensors", *(["bitsandbytes"] if base_weights == "nf4" else [])
    )
    with new_artifact(out, "merged", name or adapter.name, parents=parents, tools=tools, details=details) as draft:
        print(f"merging {adapter.name} onto {model.base.path} ({base_weights.upper()})", file=sys.stderr)
        changes = Cleaner(model.base_folder, adapter.folder, draft.path).write_all(
            dtype=dtype,
            tied=weights.tied,
            rows=weights.shape(EMBEDDING)[0] if EMBEDDING in weights.names() else model.base_config["vocab_size"],
        )
        if weights.base_tied and not weights.tied:
            changes.append("lm_head.weight: written, the adapter made it differ from the input embeddings")
        rounding = _Rounding(weights, dtype)
        write_shards(draft.path, rounding.planned(), rounding.read, shard_bytes)
        rounding.raise_problems(str(adapter.path), base_weights)
        prove_reload(draft.path, weights.changed_names(), model.base_folder)
        draft.details |= {"dtype": dtype, "merged_on": base_weights, "cleaning": changes}
        if model.trained_on is not None:
            draft.details["trained_on"] = model.trained_on
        if rounding.unchanged:
            draft.details["rounded_away"] = rounding.unchanged
            print(
                f"note: {len(rounding.unchanged)} of {len(weights.changed_names())} deltas vanish when rounded to "
                f"{dtype}: {listed(rounding.unchanged)}",
                file=sys.stderr,
            )
    return draft.finished


class _Rounding:
    """Hands out merged tensors in the stored dtype and collects what is wrong with them."""

    def __init__(self, weights: AdaptedWeights, dtype: Dtype) -> None:
        self.weights, self.dtype = weights, dtype
        self.problems: list[str] = []
        self.overflows: list[str] = []
        self.unchanged: list[str] = []

    def planned(self) -> list[PlannedTensor]:
        """Every tensor that is written."""
        return [PlannedTensor(name, self.weights.shape(name), self.dtype) for name in self.weights.names()]

    def read(self, name: str) -> torch.Tensor:
        """The tensor to store."""
        import torch

        before = self.weights.unmerged(name)
        merged = before + self.weights.lora.delta(name) if name in self.weights.lora.pairs else before
        rounded = merged.to(getattr(torch, self.dtype))
        if not bool(torch.isfinite(rounded).all()):
            if not bool(torch.isfinite(before).all()):
                self.problems.append(f"{name}: the base's weights are not finite")
            elif not bool(torch.isfinite(merged).all()):
                self.problems.append(f"{name}: the delta is not finite")
            else:
                self.overflows.append(f"{name} (max {merged.abs().max().item():g})")
        elif name in self.weights.lora.pairs and torch.equal(rounded, before.to(rounded.dtype)):
            self.unchanged.append(name)
        return rounded

    def raise_problems(self, where: str, base_weights: BaseWeights) -> None:
        """Raise what was collected."""
        if self.problems:
            raise AssayError("the merge is not finite", where=where, got=listed(self.problems, 20))
        if self.overflows:
            raise AssayError(
                f"merged weights do not fit into {self.dtype}",
                where=where,
                expected="at most 65504",
                got=listed(self.overflows, 20),
                hint="--dtype bfloat16 or --dtype float32",
            )
        lora = self.weights.lora
        if len(self.unchanged) == len(lora.pairs) and not lora.replaced and base_weights == "w16":
            raise AssayError(
                f"the adapter changes nothing: every delta vanishes when rounded to {self.dtype}",
                where=where,
                hint="--dtype float32",
            )
