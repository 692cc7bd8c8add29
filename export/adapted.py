"""A base with its adapter merged while it is read, tensor by tensor, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Parent, open_artifact
from contract.errors import AssayError, listed
from contract.model_folder import read_json, resolve_model
from export.parallel import one_torch_thread
from export.peft_adapter import PeftAdapter, open_adapter
from export.peft_changes import Apply, Change, TokenRows
from export.peft_config import CONFIG_FILE, read_adapter_config
from export.skeleton import Skeleton, skeleton_of
from export.weights import FLOAT_DTYPES, FolderWeights, rows_per_block

if TYPE_CHECKING:
    import torch

BaseWeights = Literal["w16", "nf4"]
_PER_TOKEN = "final_logits_bias"  # BART's, [1, vocabulary]: follows embeddings that are resized


@dataclass(frozen=True)
class Block:
    """Some rows of a weight."""

    start: int  # the first row's number
    before: torch.Tensor  # as the base, or a replacement, has them
    merged: torch.Tensor  # in float32; the same object where nothing changes them


@dataclass(frozen=True)
class AdaptedWeights:
    """Merged weights in float32; what the adapter does not touch comes through as the base has it."""

    base: FolderWeights  # under the model's names
    adapter: PeftAdapter
    skeleton: Skeleton  # of the base
    nf4: dict[str, Any] | None  # double_quant and block_size where the base is put through NF4 first

    @property
    def rows(self) -> int:
        """Rows of the input embeddings."""
        return self.shape(self.skeleton.embedding)[0]

    @cached_property
    def tied(self) -> bool:
        """Are input and output embeddings still one after merging?"""
        import torch

        ends = self.skeleton.embedding, self.skeleton.head
        if self.skeleton.tied_unscaled:  # stored twice, both versions of transformers read it alike
            return False
        if not self.skeleton.tied or not any(self.is_changed(name) for name in ends):
            return self.skeleton.tied
        if self.shape(ends[0]) != self.shape(ends[1]):
            return False
        pairs = zip(*(self._adapted(name) for name in ends), strict=True)
        return all(torch.equal(*(block.merged.float() for block in pair)) for pair in pairs)

    def names(self) -> list[str]:
        """All names; a tied head is not stored."""
        names = set(self.base.names()) - {self.skeleton.head}
        return sorted(names if self.tied else names | {self.skeleton.head})

    def place(self, name: str) -> str:
        """Where the base keeps a weight: a tied head with the embeddings."""
        return self.skeleton.embedding if name == self.skeleton.head and self.skeleton.tied else name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape after merging; embeddings may have been resized by the adapter."""
        key = self._replacement(name)
        if key is not None:
            return self.adapter.weights.shape(key)
        stored = self.base.shape(self.place(name))
        return (*stored[:-1], self.rows) if name.endswith(_PER_TOKEN) else stored

    def dtype(self, name: str) -> str:
        """Everything is merged in float32."""
        return "F32"

    def _replacement(self, name: str) -> str | None:
        """The key of what replaces `name`: its own, or the resized embeddings' where a tied head follows them."""
        if name in self.adapter.replaced:
            return self.adapter.replaced[name]
        place = self.place(name)
        return self.adapter.replaced.get(place) if place not in self.adapter.saved else None

    def _change(self, name: str) -> Change | None:
        """What changes `name`: its own, or the trained token rows of the embeddings where a tied head follows them."""
        if name in self.adapter.changes:
            return self.adapter.changes[name]
        followed = self.adapter.changes.get(self.place(name))
        return followed if isinstance(followed, TokenRows) else None

    def is_changed(self, name: str) -> bool:
        """Does the adapter change or replace this tensor?"""
        return self._change(name) is not None or self._replacement(name) is not None

    def _unmerged(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        key = self._replacement(name)
        if key is not None:
            yield from self.adapter.weights.blocks(key, multiple)
        elif self.nf4 is not None and name in self.skeleton.nf4:
            from runtimes.nf4 import dequantized_nf4

            whole = self.base.read(self.place(name)).float()  # its scales are quantized together
            whole = dequantized_nf4(whole, self.nf4["double_quant"], self.nf4["block_size"])
            step = rows_per_block(tuple(whole.shape), multiple)
            yield from ((start, whole[start : start + step]) for start in range(0, len(whole), step))
        elif self.shape(name) != self.base.shape(self.place(name)):
            import torch

            # as transformers resizes it: new tokens have no bias
            stored, whole = self.base.read(name).float(), torch.zeros(self.shape(name))
            known = min(stored.shape[-1], whole.shape[-1])
            whole[..., :known] = stored[..., :known]
            yield 0, whole
        else:
            yield from self.base.blocks(self.place(name), multiple)

    def before_and_after(self, name: str, multiple: int = 1) -> Iterator[Block]:
        """The weight some rows at a time, before and after merging."""
        scale = self.skeleton.tied_head_scale
        if name != self.skeleton.head or self.tied or scale == 1.0:
            yield from self._adapted(name, multiple)
            return
        for block in self._adapted(name, multiple):  # a head of its own is not scaled by the model any more
            yield Block(block.start, block.before, block.merged.float() * scale)

    def _adapted(self, name: str, multiple: int = 1) -> Iterator[Block]:
        import torch

        change = self._change(name)
        apply: Apply | None = None
        if change is not None:
            apply = change.prepare(
                self.adapter.read,
                lambda: ((start, rows.to(torch.float32, copy=True)) for start, rows in self._unmerged(name)),
            )
        for start, rows in self._unmerged(name, multiple):
            merged = rows if apply is None else apply(rows.to(torch.float32, copy=True), start)
            yield Block(start, rows, merged)

    def blocks(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """The merged weight in float32, a multiple of so many rows at a time, each with its first row's number."""
        return ((block.start, block.merged.float()) for block in self.before_and_after(name, multiple))

    def read(self, name: str) -> torch.Tensor:
        """The whole merged weight, in float32."""
        import torch

        shape = self.shape(name)
        whole = torch.empty(shape, dtype=torch.float32)
        for start, rows in self.blocks(name):
            if shape:
                whole[start : start + len(rows)] = rows
            else:
                whole.copy_(rows)
        return whole

    def changed_names(self) -> list[str]:
        """What the adapter changes among what is stored."""
        return [name for name in self.names() if self.is_changed(name)]


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
        AssayError: it is no adapter, the base is not there, not intact or not the one recorded, the adapter does not
            fit it, or NF4 was asked for an adapter that is not known to have been trained on it.
    """
    if adapter.kind != "adapter":
        raise AssayError(
            "this is no adapter",
            where=str(adapter.path),
            expected=f"a folder with {CONFIG_FILE}",
            got=adapter.kind,
        )
    if not adapter.foreign:
        adapter.verify()
    config = read_adapter_config(adapter.folder)
    trained = _trained_on(adapter, trained_on)
    _refuse_nf4(adapter, base_weights, trained)
    recorded = adapter.parent("base")
    reference = recorded.path if recorded else config.values.get("base_model_name_or_path")
    if not reference:
        raise AssayError(
            "the adapter does not name its base",
            where=str(adapter.folder / CONFIG_FILE),
            expected="base_model_name_or_path",
        )
    folder = resolve_model(reference, config.values.get("revision"), beside=adapter.folder)
    with ThreadPoolExecutor(max_workers=1) as beside:  # hashing the base takes as long as building its skeleton
        hashing = beside.submit(open_artifact, folder, verify=True)
        skeleton = skeleton_of(folder)
        there = hashing.result()
        digest = there.digest
    if recorded and not there.is_parent(recorded, adapter.manifest):
        raise AssayError(
            "this is not the base the adapter was trained on",
            where=str(folder),
            expected=f"digest {recorded.digest}",
            got=f"digest {digest}",
            hint="restore the base, or train again on this one",
        )
    base = _open_base(folder, skeleton)
    nf4 = _nf4(base_weights, trained)
    if nf4 is not None and skeleton.transposed:
        raise AssayError(
            "Conv1D layers have no NF4 form here", where=str(folder), got=f"--base {base_weights}", hint="--base W16"
        )
    with one_torch_thread():  # its tensors are small
        fitted = open_adapter(adapter.folder, config, skeleton, str(folder))
    weights = AdaptedWeights(base, fitted, skeleton, nf4)
    located = Path(reference).is_dir() or reference.startswith("..")  # no hub id
    path = str(folder) if located and not recorded else reference
    return AdaptedModel(
        adapter, folder, Parent("base", path, digest), read_json(folder / "config.json"), weights, trained
    )


def _open_base(folder: Path, skeleton: Skeleton) -> FolderWeights:
    stored = FolderWeights.open(folder)
    packed = [f"{name} ({stored.dtype(name)})" for name in stored.names() if stored.dtype(name) not in FLOAT_DTYPES]
    if packed:
        raise AssayError(
            "the base is stored quantized; a delta cannot be added to packed weights",
            where=str(folder),
            got=listed(packed),
            hint="point the adapter at the 16-bit base (base_model_name_or_path)",
        )
    names = skeleton.names_of(stored.names(), str(folder))
    _refuse_other_copies(stored, skeleton.copies_of_embedding(stored.names()), str(folder))
    base = stored.renamed(names)
    problems = [
        f"{name}: {list(base.shape(name))}, config.json says {list(skeleton.shapes[name])}"
        for name in base.names()
        if base.shape(name) != skeleton.shapes[name]
    ]
    if problems:
        raise AssayError(
            "the base's tensors are not those of its config.json", where=str(folder), got=listed(problems, 20)
        )
    return base


def _refuse_other_copies(stored: FolderWeights, copies: list[str], where: str) -> None:
    """Raise where the input embeddings are stored several times and not alike: no model could have them all."""
    import torch

    if any(not torch.equal(stored.read(copies[0]), stored.read(other)) for other in copies[1:]):
        raise AssayError(
            "the base stores its shared embeddings several times, and not alike",
            where=where,
            got=listed(copies),
            hint="is tie_word_embeddings in config.json right?",
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
