"""What of a PEFT adapter llama.cpp's LoRA format can hold: its matrices by GGUF name and one alpha, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError, listed
from contract.model_folder import read_json
from export.adapted import AdaptedModel, AdaptedWeights
from export.gguf_families import read_model
from export.gguf_family import GgufTensor, interleave_halves, plan_tensors
from export.peft_changes import Change, LowRank
from export.peft_config import CONFIG_FILE
from export.peft_types import SETTINGS, TYPES
from export.source import Source

if TYPE_CHECKING:
    import torch

_MERGED = "put the merged model into a GGUF instead: assay export gguf ADAPTER --out DIR"


@dataclass(frozen=True)
class LoraPair:
    """A and B of one weight."""

    tensor: GgufTensor  # of the base's GGUF, the weight they change
    change: LowRank
    rank: int
    embedded: bool  # of the input embeddings, which llama.cpp looks up instead of multiplying
    factor: float  # what B is multiplied by, so that alpha / rank is the scale of every pair

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of `matrices`."""
        rows, columns = self.tensor.shape
        if self.embedded:
            return (rows, self.rank), (columns, self.rank)
        return (self.rank, columns), (rows, self.rank)

    def matrices(self, weights: AdaptedWeights) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in float32 and llama.cpp's layout: [rank, columns] and [rows, rank].

        Of the input embeddings, whose rows are looked up: [tokens, rank] and [columns, rank].
        """
        read = weights.adapter.read
        a, b = read(self.change.a), read(self.change.b)
        if self.change.singular:
            a = a * read(self.change.singular).reshape(-1, 1)
        if self.factor != 1.0:
            b = b * self.factor
        if self.tensor.layout.heads is not None:
            b = interleave_halves(b, self.tensor.layout.heads)
        return (a.T if self.embedded else a).contiguous(), b.contiguous()


@dataclass(frozen=True)
class LoraPlan:
    """All that is known of a LoRA GGUF before a value is read."""

    arch: str  # llama.cpp's name of the base's architecture
    alpha: float
    pairs: Sequence[LoraPair]

    @property
    def folded(self) -> int:
        """How many B took a factor, because their scale is not alpha / rank by itself."""
        return sum(pair.factor != 1.0 for pair in self.pairs)


def refuse_kind(folder: Path) -> None:
    """Refuse what can be merged but has no A and B alone (docs/adapters.md).

    Raises:
        AssayError: with the reason of every setting.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    kind = str(values.get("peft_type"))
    refused = {kind: TYPES[kind]} if kind in TYPES and not TYPES[kind].lora_gguf else {}
    refused |= {
        key: fate
        for key, fate in SETTINGS.items()
        if fate.merged and not fate.lora_gguf and values.get(key) and values[key] != "none"
    }
    if refused:
        hints = dict.fromkeys(fate.instead or _MERGED for fate in refused.values())
        raise AssayError(
            "this adapter cannot become a LoRA GGUF",
            where=str(path),
            got=listed(f"{key}: {fate.why}" for key, fate in refused.items()),
            expected="A and B of weights, nothing else",
            hint="; ".join(hints),
        )


def plan_lora(model: AdaptedModel) -> LoraPlan:
    """Find every changed weight's place in the base's GGUF, and the alpha that fits them.

    llama.cpp has one alpha for the file and scales each product by alpha / rank. The largest scale × rank of all pairs
    becomes that alpha; the others' B shrink to it, which rounds each value once and cannot overflow.

    Raises:
        AssayError: a family that GGUF is not written for; changes that A and B of a weight cannot say, all of them
            named; or an adapter that is scaled to nothing.
    """
    weights, where = model.weights, str(model.adapter.path)
    source = Source(model.base_folder, model.base_config, weights.base, str(model.base_folder), {}, None)
    family = read_model(source)
    places = {tensor.source: tensor for tensor in plan_tensors(family, weights.base, source.where)}
    problems = [*_problems(weights, weights.adapter.changes), *_replacements(weights)]
    if problems:
        raise AssayError("this adapter cannot become a LoRA GGUF", where=where, got=listed(problems, 20), hint=_MERGED)
    scaled = {}
    for name, change in weights.adapter.changes.items():
        assert isinstance(change, LowRank)
        scaled[name] = change, weights.adapter.weights.shape(change.b)[1]
    alpha = max((change.scale * rank for change, rank in scaled.values()), key=abs)
    if alpha == 0.0:
        raise AssayError("the adapter is scaled to nothing", where=where, got="lora_alpha 0")
    pairs = [
        LoraPair(
            places[name],
            change,
            rank,
            embedded=name == weights.skeleton.embedding,
            factor=1.0 if math.isclose(change.scale * rank, alpha) else change.scale * rank / alpha,
        )
        for name, (change, rank) in sorted(scaled.items())
    ]
    return LoraPlan(family.arch, alpha, pairs)


def _problems(weights: AdaptedWeights, changes: dict[str, Change]) -> list[str]:
    skeleton = weights.skeleton
    multiplied = skeleton.linears | skeleton.transposed | {skeleton.embedding, skeleton.head}
    problems = []
    for name, change in changes.items():
        if not isinstance(change, LowRank) or change.magnitude is not None:
            problems.append(f"{name}: its change is more than B·A")
        elif skeleton.tied and name in (skeleton.embedding, skeleton.head):
            problems.append(f"{name}: input and output embeddings are one tensor; llama.cpp cannot change one alone")
        elif name not in multiplied:
            problems.append(f"{name}: llama.cpp applies no adapter there")
    return sorted(problems)


def _replacements(weights: AdaptedWeights) -> list[str]:
    """What takes a base tensor's place and is another. (PEFT saves embeddings beside their own A and B.)"""
    import torch

    problems = []
    for name, key in sorted(weights.adapter.replaced.items()):
        own, brought, place = weights.base, weights.adapter.weights, weights.place(name)
        if own.shape(place) != brought.shape(key):
            problems.append(f"{name}: resized from {own.shape(place)[0]} rows to {brought.shape(key)[0]}")
            continue
        blocks = zip(own.blocks(place), brought.blocks(key), strict=True)
        if not all(torch.equal(before.float(), after.float()) for (_, before), (_, after) in blocks):
            problems.append(f"{name}: replaced by trained values")
    return problems
