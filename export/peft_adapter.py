"""Opens a PEFT adapter and fits it to its base: which tensors it changes and how, or what does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError, listed
from export.finite import all_finite
from export.peft_changes import AddedBias, Change, Hadamard, Kronecker, LowRank, Scaled, TokenRows
from export.peft_config import AdapterConfig
from export.skeleton import Skeleton
from export.weights import FLOAT_DTYPES, FolderWeights
from runtimes.peft_keys import WHOLE, adapter_names, parse_key

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "adapter_model.safetensors"
_LINEAR, _EMBEDDED = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_PARTS = {
    "LORA": {*_LINEAR, *_EMBEDDED, "lora_magnitude_vector", "lora_B.bias", "trainable_tokens_delta"},
    "ADALORA": {*_LINEAR, "lora_E", "ranknum"},
    "IA3": {"ia3_l"},
    "LOHA": set(_HADAMARD),
    "LOKR": set(_KRONECKER),
    "LN_TUNING": set(),
    "TRAINABLE_TOKENS": {"trainable_tokens_delta"},
}
Parts = dict[str, str]  # part of a module -> key


@dataclass
class PeftAdapter:
    """An adapter that fits its base. Its tensors are read when asked for."""

    weights: FolderWeights
    config: AdapterConfig
    changes: dict[str, Change] = field(default_factory=dict)  # base tensor -> its change
    replaced: dict[str, str] = field(default_factory=dict)  # base tensor -> the key of what takes its place
    saved: set[str] = field(default_factory=set)  # of those, the ones that were trained (modules_to_save)

    def read(self, key: str) -> torch.Tensor:
        """A tensor of the adapter, in float32."""
        return self.weights.read(key).float()

    def names(self) -> list[str]:
        """The base tensors it changes."""
        return sorted(set(self.changes) | set(self.replaced))


def open_adapter(folder: Path, config: AdapterConfig, skeleton: Skeleton, base_name: str) -> PeftAdapter:
    """Open an adapter and fit it to its base.

    Raises:
        AssayError: keys without a place or a partner, targeted modules without keys, shapes or ranks that do not fit,
            matrices that are zero or not finite. All are named.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AssayError("the adapter has no weights", where=str(path), hint="weights are read from safetensors only")
    fitting = _Fitting(PeftAdapter(FolderWeights.of_file(path), config), skeleton)
    fitting.fit()
    if fitting.problems:
        raise AssayError(
            "the adapter does not fit its base",
            where=str(path),
            expected=f"weights of {base_name}",
            got=listed(fitting.problems, 20),
            hint="is it the right base, and the adapter unchanged?",
        )
    if not fitting.adapter.names():
        raise AssayError("the adapter is empty", where=str(path))
    return fitting.adapter


class _Fitting:
    """Takes the keys module by module and collects what does not fit."""

    def __init__(self, adapter: PeftAdapter, skeleton: Skeleton) -> None:
        self.adapter, self.skeleton = adapter, skeleton
        self.config, self.weights = adapter.config, adapter.weights
        self.problems: list[str] = []

    def fit(self) -> None:
        """Fill the adapter's changes and replacements."""
        keys = self.weights.names()
        if len(named := adapter_names(keys)) > 1:
            self.problems.append(f"several adapters in one file: {listed(sorted(named))}")
        modules: dict[str, Parts] = defaultdict(dict)
        for key in keys:
            parsed = parse_key(key)
            if self.weights.dtype(key) not in FLOAT_DTYPES:
                self.problems.append(f"{key}: stored as {self.weights.dtype(key)}")
            elif parsed.part not in _PARTS[self.config.kind] | {*WHOLE, "original"}:
                self.problems.append(f"{key}: not a part of a {self.config.kind} adapter")
            elif not self._has(parsed.module):
                self.problems.append(f"{key}: the base has no {parsed.module}")
            elif (known := modules[parsed.module].get(parsed.part)) is not None:
                if not self._same(key, known):  # PEFT saves trained and resized embeddings under two names
                    self.problems.append(f"{key}: not what {known} is")
            else:
                modules[parsed.module][parsed.part] = key
        for module, parts in modules.items():
            self._module(module, parts)
        self.problems += [*self._ends(), *self._unread()]
        trained = {module for module, parts in modules.items() if set(parts) - {"original"}}
        self.problems += [
            f"{module}: targeted, but not in the file" for module in self._targets() if module not in trained
        ]
        self.problems += [
            f"{name}: trained, but not in the file" for name in self._promised() if name not in self._done()
        ]

    def _ends(self) -> list[str]:
        """Input and output embeddings must have been resized together."""
        embedding, head = self.skeleton.embedding, self.skeleton.head
        rows = self._shape(embedding)[0], self._shape(head)[0]
        if self.skeleton.tied and head not in self.adapter.replaced and embedding not in self.adapter.saved:
            return []
        if rows[0] == rows[1]:
            return []
        return [f"{embedding} has {rows[0]} rows and {head} {rows[1]}: only one of the two was resized and saved"]

    def _unread(self) -> list[str]:
        """PEFT trains a copy of shared embeddings under one name, while encoder and decoder read the other names."""
        name = self.skeleton.embedding
        if not self.skeleton.aliases or not (name in self.adapter.changes or name in self.adapter.saved):
            return []
        others = listed(sorted(alias.removesuffix(".weight") for alias in self.skeleton.aliases))
        return [f"{name}: trained in vain, the model reads its embeddings as {others}"]

    def _done(self) -> set[str]:
        return set(self.adapter.changes) | set(self.adapter.replaced)

    def _same(self, key: str, other: str) -> bool:
        import torch

        return torch.equal(self.weights.read(key), self.weights.read(other))

    def _has(self, module: str) -> bool:
        return any(f"{module}.{leaf}" in self.skeleton.shapes for leaf in WHOLE)

    def _module(self, module: str, parts: Parts) -> None:
        for leaf in WHOLE:
            if leaf in parts:
                self._replace(f"{module}.{leaf}", parts[leaf], trained=self.config.saves(module))
        changes: dict[str, Change | None] = {}
        name = f"{module}.weight"
        if any(part in parts for part in (*_LINEAR, *_EMBEDDED)):
            changes[name] = self._low_rank(module, parts)
            if "lora_B.bias" in parts and isinstance(change := changes[name], LowRank):
                changes[f"{module}.bias"] = AddedBias(parts["lora_B.bias"], change.scale)
        if "ia3_l" in parts:
            changes |= self._scaled(module, parts["ia3_l"])
        if any(part in parts for part in _HADAMARD):
            changes[name] = self._hadamard(module, parts)
        if any(part in parts for part in _KRONECKER):
            changes[name] = self._kronecker(module, parts)
        if "trainable_tokens_delta" in parts:
            if name in changes:
                self.problems.append(f"{name}: both a delta and trained token rows")
            changes[name] = self._token_rows(module, parts["trainable_tokens_delta"])
        for place, change in changes.items():
            if change is None:
                continue
            if place not in self.skeleton.shapes:
                self.problems.append(f"{place}: the base has none")
                continue
            self._finite(change.keys)
            self.adapter.changes[place] = change

    def _shape(self, name: str) -> tuple[int, ...]:
        """The base tensor's shape; a replacement's, where the adapter brings one."""
        key = self.adapter.replaced.get(name)
        return self.skeleton.shapes[name] if key is None else self.weights.shape(key)

    def _replace(self, name: str, key: str, *, trained: bool) -> None:
        own = self.skeleton.shapes.get(name)
        shape = self.weights.shape(key)
        resizable = name in (self.skeleton.embedding, self.skeleton.head)
        if own is None:
            self.problems.append(f"{key}: the base has no {name}")
        elif shape != own and not (resizable and shape[1:] == own[1:]):
            self.problems.append(f"{name}: {list(shape)}, the base's is {list(own)}")
        else:
            self._finite((key,))
            self.adapter.replaced[name] = key
            if trained:
                self.adapter.saved.add(name)

    def _finite(self, keys: Iterable[str]) -> None:
        self.problems += [f"{key}: not finite" for key in keys if not all_finite(self.adapter.read(key))]

    def _fits(self, name: str, found: tuple[int, ...]) -> bool:
        expected = self._shape(name)
        if found != expected:
            self.problems.append(f"{name}: its delta is {list(found)}, the base's weight {list(expected)}")
        return found == expected

    def _complete(self, name: str, parts: Parts, wanted: Iterable[str], *, label: str) -> bool:
        there, missing = ([part for part in wanted if (part in parts) is yes] for yes in (True, False))
        if missing:
            short = [", ".join(part.removeprefix(label) for part in side) for side in (there, missing)]
            self.problems.append(f"{name}: {short[0]} without {short[1]}")
        return not missing

    def _low_rank(self, module: str, parts: Parts) -> LowRank | None:
        name = f"{module}.weight"
        embedded = any(part in parts for part in _EMBEDDED)
        pair = _EMBEDDED if embedded else _LINEAR
        wanted = [*pair, *(["lora_E"] if self.config.kind == "ADALORA" else [])]
        if not self._complete(name, parts, wanted, label="lora_embedding_" if embedded else "lora_"):
            return None
        if self.config.is_on("use_dora") != ("lora_magnitude_vector" in parts):
            self.problems.append(f"{name}: use_dora and its magnitude vector disagree")
            return None
        if not embedded and self.config.is_on("lora_bias") != ("lora_B.bias" in parts):
            self.problems.append(f"{name}: lora_bias and the bias of its B disagree")
            return None
        shape_a, shape_b = (self.weights.shape(parts[part]) for part in pair)
        adaptive = self.config.kind == "ADALORA"  # each weight keeps a rank of its own, perhaps none
        rank = shape_a[0] if adaptive else self.config.rank(module)
        if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1] or shape_a[0] != rank:
            self.problems.append(f"{name}: A {list(shape_a)} and B {list(shape_b)}, the configuration says rank {rank}")
            return None
        transposed = embedded or name in self.skeleton.transposed
        outputs, inputs = shape_b[0], shape_a[1]
        if not self._fits(name, (inputs, outputs) if transposed else (outputs, inputs)):
            return None
        if adaptive and rank == 0:
            return None
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude and self.weights.read(magnitude).numel() != outputs:
            self.problems.append(f"{name}: {self.weights.shape(magnitude)} magnitudes for {outputs} outputs")
            return None
        if not adaptive:
            self.problems += [
                f"{name}: its delta is zero ({part[-1]} is all zeros)"
                for part in pair
                if magnitude is None and not bool(self.weights.read(parts[part]).any())
            ]
        return LowRank(
            parts[pair[0]],
            parts[pair[1]],
            self.config.scale(module),
            transposed,
            parts.get("lora_E"),
            magnitude,
        )

    def _scaled(self, module: str, key: str) -> dict[str, Change | None]:
        name = f"{module}.weight"
        shape = self.weights.shape(key)
        transposed = name in self.skeleton.transposed
        outputs, inputs = self._shape(name)[:: -1 if transposed else 1]
        if shape == (1, inputs):  # a feed-forward module: its inputs are scaled
            return {name: Scaled(key, by_row=transposed)}
        if shape != (outputs, 1):
            self.problems.append(f"{name}: a vector of {list(shape)} for a weight of {list(self._shape(name))}")
            return {}
        found: dict[str, Change | None] = {name: Scaled(key, by_row=not transposed)}
        if f"{module}.bias" in self.skeleton.shapes:
            found[f"{module}.bias"] = Scaled(key, by_row=True)
        return found

    def _hadamard(self, module: str, parts: Parts) -> Hadamard | None:
        name = f"{module}.weight"
        if not self._complete(name, parts, _HADAMARD, label="hada_"):
            return None
        shapes = [self.weights.shape(parts[part]) for part in _HADAMARD]
        rank = self.config.rank(module)
        expected = [(self._shape(name)[0], rank), (rank, self._shape(name)[1])] * 2
        if shapes != expected:
            self.problems.append(f"{name}: factors of {shapes}, expected {expected}")
            return None
        a1, b1, a2, b2 = (parts[part] for part in _HADAMARD)
        return Hadamard((a1, b1), (a2, b2), self.config.scale(module))

    def _kronecker(self, module: str, parts: Parts) -> Kronecker | None:
        name = f"{module}.weight"
        factors: list[tuple[str, ...]] = []
        extents = []
        for factor in ("lokr_w1", "lokr_w2"):
            wanted = [factor] if factor in parts else [f"{factor}_a", f"{factor}_b"]
            if not self._complete(name, parts, wanted, label="lokr_"):
                return None
            shapes = [self.weights.shape(parts[part]) for part in wanted]
            factors.append(tuple(parts[part] for part in wanted))
            extents.append((shapes[0][0], shapes[-1][1]))
        if not self._fits(name, (extents[0][0] * extents[1][0], extents[0][1] * extents[1][1])):
            return None
        return Kronecker(factors[0], factors[1], self.config.scale(module))

    def _token_rows(self, module: str, key: str) -> TokenRows | None:
        name = f"{module}.weight"
        indices = self.config.token_indices(module)
        if isinstance(self.config.values.get("trainable_token_indices"), list) and not (
            name == self.skeleton.embedding or (self.skeleton.tied and name == self.skeleton.head)
        ):
            self.problems.append(f"{name}: token rows that trainable_token_indices does not name")
            return None
        rows, width = self._shape(name)
        if self.weights.shape(key) != (len(indices), width) or len(set(indices)) != len(indices):
            self.problems.append(f"{name}: rows of {list(self.weights.shape(key))} for {len(indices)} trained tokens")
            return None
        if outside := [index for index in indices if not 0 <= index < rows]:
            self.problems.append(f"{name}: no rows {listed(str(index) for index in outside)} among {rows}")
            return None
        return TokenRows(key, indices)

    def _promised(self) -> list[str]:
        """Token rows and biases that the settings say were trained."""
        values = self.config.values
        shapes = self.skeleton.shapes
        promised = []
        if tokens := values.get("trainable_token_indices"):
            names = list(tokens) if isinstance(tokens, dict) else [self.skeleton.embedding.removesuffix(".weight")]
            promised += [name for name in shapes if any(f".{name}".endswith(f".{part}.weight") for part in names)]
        bias = values.get("bias", "none")
        if bias == "all":
            promised += [name for name in shapes if name.endswith(".bias")]
        elif bias == "lora_only":
            beside = [name.removesuffix(".weight") + ".bias" for name in self.adapter.changes]
            promised += [name for name in beside if name in shapes]
        return sorted(promised)

    def _targets(self) -> list[str]:
        """The linear modules that target_modules names: all of them must be in the file."""
        values = self.config.values
        targets = values.get("target_modules")
        if not targets or self.config.is_on("layers_to_transform") or self.config.kind == "LN_TUNING":
            return []
        modules = [name.removesuffix(".weight") for name in self.skeleton.linears | self.skeleton.transposed]
        if isinstance(targets, str) and targets.lower() == "all-linear":
            chosen = modules
        else:
            chosen = [module for module in modules if _names(targets, module)]
        excluded = values.get("exclude_modules")
        saved = {module for module in modules if self.config.saves(module)}
        return sorted(set(chosen) - saved - {module for module in modules if excluded and _names(excluded, module)})


def _names(targets: str | list[str], module: str) -> bool:
    """Does target_modules name this module? Text is a regular expression; a list holds names, or their ends."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(f".{module}".endswith(f".{target}") for target in targets)
