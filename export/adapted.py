"""A base with its adapter merged while it is read, tensor by tensor, in float32."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Parent, open_artifact
from contract.errors import AssayError, listed
from contract.model_folder import read_json, resolve_model
from export.lora import CONFIG_FILE, LoraAdapter, adapter_config, open_lora
from export.weights import FLOAT_DTYPES, FolderWeights

if TYPE_CHECKING:
    import torch

BaseWeights = Literal["w16", "nf4"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DECODER_LINEAR = re.compile(r".*\.layers\.\d+\..*\.weight")


@dataclass(frozen=True)
class AdaptedWeights:
    """Merged weights in float32; what the adapter does not touch comes through as the base has it."""

    base: FolderWeights
    lora: LoraAdapter
    base_tied: bool  # the base uses its input embeddings as output embeddings
    nf4: dict[str, Any] | None  # double_quant and block_size where the base is put through NF4 first

    @cached_property
    def tied(self) -> bool:
        """Are input and output embeddings still one after merging?"""
        import torch

        touched = {EMBEDDING, HEAD} & (set(self.lora.pairs) | set(self.lora.replaced))
        return self.base_tied and (not touched or torch.equal(self.read(EMBEDDING), self.read(HEAD)))

    def names(self) -> list[str]:
        """All names; a tied head is not stored."""
        names = set(self.base.names()) - {HEAD}
        return sorted(names if self.tied else names | {HEAD})

    def _place(self, name: str) -> str:
        """Where the base keeps a weight: a tied head with the embeddings."""
        return EMBEDDING if name == HEAD and self.base_tied else name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape after merging; embeddings may have been resized by the adapter."""
        key = self._replacement(name)
        return self.base.shape(self._place(name)) if key is None else self.lora.weights.shape(self.lora.replaced[key])

    def dtype(self, name: str) -> str:
        """Everything is merged in float32."""
        return "F32"

    def _replacement(self, name: str) -> str | None:
        """The weight whose replacement stands for `name`: its own, or the resized embeddings of a tied head."""
        if name in self.lora.replaced:
            return name
        resized = name == HEAD and self.base_tied and EMBEDDING in self.lora.replaced
        return EMBEDDING if resized and EMBEDDING not in self.lora.saved_modules else None

    def unmerged(self, name: str) -> torch.Tensor:
        """The weight the delta is added to, in float32."""
        key = self._replacement(name)
        if key is not None:
            return self.lora.replacement(key).float()
        tensor = self.base.read(self._place(name)).float()
        if self.nf4 is not None and tensor.ndim == 2 and _DECODER_LINEAR.fullmatch(name):
            from runtimes.nf4 import dequantized_nf4

            return dequantized_nf4(tensor, self.nf4["double_quant"], self.nf4["block_size"])
        return tensor

    def read(self, name: str) -> torch.Tensor:
        """The merged weight, in float32."""
        tensor = self.unmerged(name)
        return tensor + self.lora.delta(name) if name in self.lora.pairs else tensor

    def changed_names(self) -> list[str]:
        """What the adapter changes."""
        return sorted(set(self.lora.pairs) | set(self.lora.replaced))


@dataclass(frozen=True)
class AdaptedModel:
    """An adapter, its base and their merged weights."""

    adapter: Artifact
    base_folder: Path
    base: Parent
    base_config: dict[str, Any]
    weights: AdaptedWeights
    trained_on: dict[str, Any] | None  # None: unknown


def open_adapted(
    adapter: Artifact, *, base_weights: BaseWeights = "w16", trained_on: BaseWeights | None = None
) -> AdaptedModel:
    """Open an adapter with its base.

    Args:
        adapter: Assay's own, or a plain PEFT folder.
        base_weights: merge onto the base's stored weights, or onto those put through NF4.
        trained_on: what an adapter that does not record it was trained on.

    Raises:
        AssayError: the base is not there or not the one recorded, the adapter does not fit it, or NF4 was asked for
            an adapter that is not known to have been trained on it.
    """
    from transformers import AutoConfig

    if not adapter.foreign:
        adapter.verify()
    config = adapter_config(adapter.folder)
    trained = _trained_on(adapter, trained_on)
    _refuse_nf4(adapter, base_weights, trained)
    recorded = adapter.parent("base")
    reference = recorded.path if recorded else config.get("base_model_name_or_path")
    if not reference:
        raise AssayError(
            "the adapter does not name its base",
            where=str(adapter.folder / CONFIG_FILE),
            expected="base_model_name_or_path",
        )
    folder = resolve_model(reference, config.get("revision"))
    digest = open_artifact(folder).digest
    if recorded and recorded.digest != digest:
        raise AssayError(
            "this is not the base the adapter was trained on",
            where=str(folder),
            expected=f"digest {recorded.digest}",
            got=f"digest {digest}",
            hint="restore the base, or train again on this one",
        )
    base = FolderWeights.open(folder)
    packed = [f"{name} ({base.dtype(name)})" for name in base.names() if base.dtype(name) not in FLOAT_DTYPES]
    if packed:
        raise AssayError(
            "the base is stored quantized; a delta cannot be added to packed weights",
            where=str(folder),
            got=listed(packed),
            hint="point the adapter at the 16-bit base (base_model_name_or_path)",
        )
    read_json(folder / "config.json")  # says itself what is wrong with it
    try:
        tied = bool(AutoConfig.from_pretrained(folder, trust_remote_code=False).tie_word_embeddings)
    except (OSError, ValueError, KeyError) as error:
        raise AssayError(
            "the base's config.json does not describe a model", where=str(folder), got=str(error).splitlines()[0]
        ) from None
    weights = AdaptedWeights(base, open_lora(adapter.folder, base, str(folder)), tied, _nf4(base_weights, trained))
    if not tied and HEAD not in base.files:
        raise AssayError(
            "the base has no output embeddings though it says they are not tied", where=str(folder), expected=HEAD
        )
    path = reference if recorded or not Path(reference).is_dir() else str(folder)
    return AdaptedModel(
        adapter, folder, Parent("base", path, digest), read_json(folder / "config.json"), weights, trained
    )


def _trained_on(adapter: Artifact, given: BaseWeights | None) -> dict[str, Any] | None:
    recorded: dict[str, Any] | None = adapter.details.get("trained_on")
    if recorded and given and recorded.get("quant") != given:
        raise AssayError(
            "the adapter's manifest says it was trained on something else",
            where=str(adapter.path),
            expected=f"--trained-on {recorded.get('quant')}, or none",
            got=f"--trained-on {given}",
        )
    if recorded or not given:
        return recorded
    # QLoRA's own settings; bitsandbytes' block size has never been another
    return {"quant": given, **({"block_size": 64, "double_quant": True} if given == "nf4" else {})}


def _refuse_nf4(adapter: Artifact, base_weights: BaseWeights, trained: dict[str, Any] | None) -> None:
    if base_weights == "nf4" and trained is None:
        raise AssayError(
            "an adapter is merged onto NF4 weights only if it was trained on them, and this one does not record it",
            where=str(adapter.path),
            hint="--trained-on nf4, if it was a QLoRA run",
        )
    if base_weights == "nf4" and trained is not None and trained["quant"] != "nf4":
        raise AssayError(
            "the adapter was not trained on NF4 weights, merging onto them would only lose",
            where=str(adapter.path),
            got=f"trained on {trained['quant']}",
            hint="--base W16",
        )


def _nf4(base_weights: BaseWeights, trained: dict[str, Any] | None) -> dict[str, Any] | None:
    if base_weights != "nf4" or trained is None:
        return None
    return {"double_quant": bool(trained.get("double_quant", True)), "block_size": int(trained.get("block_size", 64))}
