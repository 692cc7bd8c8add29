"""Reads a PEFT LoRA adapter: which weights it changes and by how much, or why it cannot be merged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.model_folder import read_json
from export.weights import FLOAT_DTYPES, FolderWeights, Weights

if TYPE_CHECKING:
    import torch

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PAIRS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
# Why an adapter of another kind is not merged.
_OTHER_TYPES = {
    "PROMPT_TUNING": "soft prompts are inputs, not weights",
    "P_TUNING": "soft prompts are inputs, not weights",
    "PREFIX_TUNING": "prefixes live in the key-value cache, not in weights",
    "ADAPTION_PROMPT": "its attention has a gate that no base layer has",
    "MULTITASK_PROMPT_TUNING": "soft prompts are inputs, not weights",
    "IA3": "(IA)³ rescales activations",
    "ADALORA": "its singular values are stored apart",
}
# LoRA settings that change what the delta is; a truthy value is refused with the reason.
_OTHER_SETTINGS = {
    "use_dora": "DoRA rescales whole weights by a learned magnitude",
    "lora_bias": "the B matrices have biases",
    "fan_in_fan_out": "its weights are stored transposed",
    "trainable_token_indices": "single token rows were trained",
    "target_parameters": "it targets bare parameters",
    "layer_replication": "it repeats layers",
    "alora_invocation_tokens": "it is active behind certain tokens only",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "its matrices are block-diagonal",
    "ensure_weight_tying": "input and output embeddings share their deltas",
    "arrow_config": "it routes between adapters",
    "kasa_config": "KaSA changes the base's singular values",
    "velora_config": "VeLoRA is unknown here",
    "monteclora_config": "MonteCLoRA is unknown here",
    "megatron_config": "it is split for Megatron",
}
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")  # the others change the base weights as they start
_READ_SETTINGS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}


@dataclass
class Pair:
    """The two matrices of one weight, by their keys in the adapter's file."""

    scale: float
    embedding: bool
    keys: dict[str, str] = field(default_factory=dict)  # "A", "B" -> key


@dataclass
class LoraAdapter:
    """An adapter that fits its base. Deltas are computed when asked for."""

    weights: FolderWeights
    pairs: dict[str, Pair]  # base weight -> its two matrices
    replaced: dict[str, str]  # base weight -> the key of a whole weight that takes its place
    saved_modules: frozenset[str]  # of those, the ones that were trained (modules_to_save), by weight name

    def delta(self, name: str) -> torch.Tensor:
        """scale · B·A in float32, of the weight's shape; rsLoRA's scale is alpha/√rank (arXiv:2312.03732)."""
        pair = self.pairs[name]
        a, b = (self.weights.read(pair.keys[side]).float() for side in "AB")
        product = (b @ a) * pair.scale
        return product.T if pair.embedding else product

    def replacement(self, name: str) -> torch.Tensor:
        """The whole weight that takes the base's place, as stored."""
        return self.weights.read(self.replaced[name])


def adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        AssayError: another kind than plain LoRA; every setting that stands in the way is named with its reason.
    """
    where = str(folder / CONFIG_FILE)
    config = read_json(folder / CONFIG_FILE)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AssayError(
            "only LoRA adapters can be merged",
            where=where,
            expected="LORA",
            got=f"{kind}: {_OTHER_TYPES.get(str(kind), 'its deltas are not known here')}",
            hint="serve it with PEFT, or train a LoRA adapter",
        )
    problems = [f"{key}: {why}" for key, why in _OTHER_SETTINGS.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias = {config['bias']!r}: biases of the base were trained")
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        problems.append(
            f"init_lora_weights = {config['init_lora_weights']!r}: it changed the base weights "
            "(PEFT's path_initial_model_for_weight_conversion makes it a plain LoRA)"
        )
    problems += [
        f"{key} = {value!r}: not known here"
        for key, value in sorted(config.items())
        if value and key not in _READ_SETTINGS and key not in _OTHER_SETTINGS
    ]
    if problems:
        raise AssayError("this LoRA adapter cannot be merged", where=where, got=listed(problems))
    return config


def open_lora(folder: Path, base: Weights, base_name: str) -> LoraAdapter:
    """Open an adapter and fit it to its base.

    Raises:
        AssayError: keys without a place or a partner, shapes or ranks that do not fit, matrices that are zero or not
            finite. All are named.
    """
    config = adapter_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AssayError("the adapter has no weights", where=str(path), hint="weights are read from safetensors only")
    weights = FolderWeights.of_file(path)
    adapter = LoraAdapter(weights, {}, {}, frozenset())
    known, problems = set(base.names()), []
    saved = set()
    for key in weights.names():
        module, part = _split(key)
        name = f"{module}.weight"
        if part in _PAIRS:
            pair = adapter.pairs.setdefault(name, Pair(_scale(config, module), "embedding" in part))
            pair.keys[_PAIRS[part]] = key
        elif part in ("weight", "base_layer.weight", "modules_to_save.weight"):
            adapter.replaced[name] = key
            if any(module == entry or module.endswith("." + entry) for entry in config.get("modules_to_save") or []):
                saved.add(name)
        elif part == "original_module.weight":
            continue  # PEFT saves it with resized embeddings; the trained module has taken its place
        else:
            problems.append(f"{key}: not a LoRA matrix")
        if name not in known and name != "lm_head.weight":  # a tied head is stored with the embeddings
            problems.append(f"{key}: the base has no {name}")
    problems += _unfit(adapter, config, base, known)
    if problems:
        raise AssayError(
            "the adapter does not fit its base",
            where=str(path),
            expected=f"weights of {base_name}",
            got=listed(problems, 20),
            hint="is it the right base, and the adapter unchanged?",
        )
    if not adapter.pairs and not adapter.replaced:
        raise AssayError("the adapter is empty", where=str(path))
    adapter.saved_modules = frozenset(saved)
    return adapter


def _split(key: str) -> tuple[str, str]:
    """A key without PEFT's prefix, as module and part."""
    rest = key.removeprefix(_PREFIX)
    for part in (*_PAIRS, "base_layer.weight", "modules_to_save.weight", "original_module.weight", "weight"):
        if rest.endswith("." + part):
            return rest[: -len(part) - 1], part
    module, _, part = rest.rpartition(".")
    return module, part


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The first pattern that matches the end of the module's name, as PEFT's get_pattern_key picks it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _rank(config: dict[str, Any], module: str) -> int:
    return int(_pattern(config.get("rank_pattern"), module, config["r"]))


def _scale(config: dict[str, Any], module: str) -> float:
    alpha, rank = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"]), _rank(config, module)
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _unfit(adapter: LoraAdapter, config: dict[str, Any], base: Weights, known: set[str]) -> list[str]:
    import torch

    problems = []
    embedding = "model.embed_tokens.weight"
    for name, pair in adapter.pairs.items():
        if len(pair.keys) != 2:
            problems.append(f"{name}: {next(iter(pair.keys))} without {'B' if 'A' in pair.keys else 'A'}")
            continue
        a, b = (adapter.weights.shape(pair.keys[side]) for side in "AB")
        rank = _rank(config, name.removesuffix(".weight"))
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
            problems.append(f"{name}: A {list(a)} and B {list(b)}, the configuration says rank {rank}")
            continue
        place = name if name in known else embedding
        if name in adapter.replaced:
            shape = adapter.weights.shape(adapter.replaced[name])
        else:
            shape = base.shape(place) if place in known else ()
        found = (a[1], b[0]) if pair.embedding else (b[0], a[1])
        if shape and found != shape:
            problems.append(f"{name}: its delta is {list(found)}, the base's weight {list(shape)}")
        for side in "AB":
            matrix = adapter.weights.read(pair.keys[side])
            if not bool(torch.isfinite(matrix).all()):
                problems.append(f"{pair.keys[side]}: not finite")
            elif not bool(matrix.any()):
                problems.append(f"{name}: its delta is zero ({side} is all zeros)")
    for name, key in adapter.replaced.items():
        if adapter.weights.dtype(key) not in FLOAT_DTYPES:
            problems.append(f"{key}: stored as {adapter.weights.dtype(key)}")
        elif not bool(torch.isfinite(adapter.weights.read(key)).all()):
            problems.append(f"{key}: not finite")
        elif (
            name in known
            and "embed" not in name
            and "lm_head" not in name
            and adapter.weights.shape(key) != base.shape(name)
        ):
            problems.append(f"{name}: {list(adapter.weights.shape(key))}, the base's is {list(base.shape(name))}")
    return problems
