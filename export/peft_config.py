"""Reads adapter_config.json: what the adapter is, or why it cannot be merged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import AssayError, did_you_mean, listed
from contract.model_folder import read_json
from export.peft_types import BY_PEFT, LORA, SETTINGS, TYPES

CONFIG_FILE = "adapter_config.json"
_PLAIN_INITS = (
    None,
    True,
    False,
    "gaussian",
    "eva",
    "mica",
    "orthogonal",
)  # the others change the base weights as they start
# Settings that say how it was trained or named, or that the weights themselves tell.
_READ = """
    alpha alpha_pattern auto_mapping base_model_name_or_path beta1 beta2 bias corda_config decompose_both
    decompose_factor deltaT ensure_weight_tying eva_config exclude_modules fan_in_fan_out feedforward_modules
    inference_mode init_ia3_weights init_lora_weights init_r init_weights layers_pattern layers_to_transform
    loftq_config lora_alpha lora_bias lora_dropout lora_ga_config megatron_core module_dropout modules_to_save
    orth_reg_weight peft_type peft_version qalora_group_size r rank_dropout rank_dropout_scale rank_pattern revision
    runtime_config target_modules target_r task_type tfinal tinit token_indices total_step trainable_token_indices
    use_dora use_effective_conv2d use_rslora
"""
_READ_SETTINGS = frozenset(_READ.split())


_NEEDED = {
    LORA: ("r", "lora_alpha"),
    "ADALORA": ("init_r", "lora_alpha"),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha"),
    "TRAINABLE_TOKENS": ("token_indices",),
}
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_TEXTS = ("base_model_name_or_path", "revision")
_NAMES = ("target_modules", "exclude_modules")  # a list, or one regular expression
_LISTS_OF_NAMES = ("modules_to_save",)


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter_config.json that can be merged."""

    values: dict[str, Any]
    where: str

    @property
    def kind(self) -> str:
        """PEFT's type: "LORA" …"""
        return str(self.values["peft_type"])

    def is_on(self, setting: str) -> bool:
        """Is a setting given and not off?"""
        return bool(self.values.get(setting))

    def rank(self, module: str) -> int:
        """The rank of a module's matrices. (AdaLoRA leaves each what it needs: there the matrices say it.)"""
        return int(_pattern(self.values.get("rank_pattern"), module, self.values["r"]))

    def scale(self, module: str) -> float:
        """alpha/rank; rsLoRA's is alpha/√rank (arXiv:2312.03732), AdaLoRA's alpha/(init_r + 1e-5) as PEFT has it."""
        if self.kind == "ADALORA":
            alpha, rank = float(self.values["lora_alpha"]), float(self.values["init_r"])
            return (alpha if alpha > 0 else rank) / (rank + 1e-5)
        default = self.values["lora_alpha"] if self.kind == LORA else self.values["alpha"]
        alpha, rank = float(_pattern(self.values.get("alpha_pattern"), module, default)), float(self.rank(module))
        return alpha / math.sqrt(rank) if self.is_on("use_rslora") else alpha / rank

    def token_indices(self, module: str) -> tuple[int, ...]:
        """The trained token ids of an embedding module, in the order their rows are stored."""
        if self.kind == "TRAINABLE_TOKENS":
            return tuple(self.values["token_indices"])
        found = self.values.get("trainable_token_indices") or []
        if isinstance(found, dict):
            found = next((ids for name, ids in found.items() if (f".{module}").endswith(f".{name}")), [])
        return tuple(found)

    def saves(self, module: str) -> bool:
        """Was this module trained whole (modules_to_save)?"""
        return any((f".{module}").endswith(f".{name}") for name in self.values.get("modules_to_save") or [])


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and judge an adapter's configuration.

    Raises:
        AssayError: a type or settings that cannot become weights; each is named with its reason and what to do.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    kind = str(values.get("peft_type"))
    fate = TYPES.get(kind)
    if fate is None:
        raise AssayError(
            "this type of adapter is not known", where=str(path), got=kind, hint=did_you_mean(kind, TYPES) or None
        )
    if not fate.merged:
        raise AssayError("this adapter cannot be merged", where=str(path), got=f"{kind}: {fate.why}", hint=fate.instead)
    refused = {key: fate for key, fate in SETTINGS.items() if not fate.merged and values.get(key)}
    if values.get("init_lora_weights") in _PLAIN_INITS:
        refused.pop("init_lora_weights", None)
    problems = [f"{key} = {_shown(values[key])}: {fate.why}" for key, fate in refused.items()]
    hints = dict.fromkeys(fate.instead for fate in refused.values())
    problems += [*_missing(kind, values), *_not_patterns(kind, values), *_other_types(values)]
    if values.get("use_dora") and values.get("lora_bias"):
        problems.append("use_dora and lora_bias: PEFT's own merge of the two is not what it runs")
    unknown = [key for key in sorted(values) if values[key] and key not in _READ_SETTINGS and key not in SETTINGS]
    if unknown:
        problems += [f"{key} = {_shown(values[key])}: not known here" for key in unknown]
        hints[BY_PEFT] = None
    if problems:
        raise AssayError(
            f"this {kind} adapter cannot be merged", where=str(path), got=listed(problems), hint="; ".join(hints)
        )
    return AdapterConfig(values, str(path))


def _missing(kind: str, values: dict[str, Any]) -> list[str]:
    """Settings that the arithmetic needs, absent or no numbers."""
    problems = []
    for key in _NEEDED.get(kind, ()):
        found = values.get(key)
        numbers = found if key == "token_indices" and isinstance(found, list) else [found]
        if not numbers or not all(_is_number(number) for number in numbers):
            problems.append(f"{key}: {found!r}, not what a {kind} adapter needs")
        elif key in ("r", "init_r") and found is not None and found <= 0:
            problems.append(f"{key}: {found!r}, not above 0")
    return problems


def _other_types(values: dict[str, Any]) -> list[str]:
    """Settings of another type than PEFT's."""
    problems = []
    for key in (*_TEXTS, *_NAMES, *_LISTS_OF_NAMES):
        value = values.get(key)
        a_text = isinstance(value, str) and key not in _LISTS_OF_NAMES
        a_list = isinstance(value, list) and key not in _TEXTS and all(isinstance(item, str) for item in value)
        if value is not None and not a_text and not a_list:
            wanted = "a text" if key in _TEXTS else "a list of names"
            problems.append(f"{key} = {_shown(value)}: not {wanted}")
    tokens = values.get("trainable_token_indices")
    for ids in tokens.values() if isinstance(tokens, dict) else [tokens]:
        if ids is not None and not (isinstance(ids, list) and all(type(item) is int for item in ids)):
            problems.append(f"trainable_token_indices = {_shown(tokens)}: not lists of token ids")
    return problems


def _not_patterns(kind: str, values: dict[str, Any]) -> list[str]:
    """Settings whose names are regular expressions, and are none, or whose numbers are none."""
    texts = [values.get(key) for key in _NAMES]
    patterns = [text for text in texts if isinstance(text, str)]
    problems = []
    for key in ("rank_pattern", "alpha_pattern"):
        given = values.get(key) or {}
        if not isinstance(given, dict):
            problems.append(f"{key} = {_shown(given)}: not a number for each name")
            continue
        wrong = [value for value in given.values() if not _is_number(value) or (key == "rank_pattern" and value <= 0)]
        if wrong and kind != "ADALORA":  # whose ranks are lists of what is left, and the matrices tell them
            problems.append(f"{key} = {_shown(given)}: not a number for each name")
        else:
            patterns += given
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{pattern!r} is no regular expression: {error}")
    return problems


def _is_number(value: Any) -> bool:
    """Is it a number that float32 holds? NaN is none."""
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The first pattern that matches the end of the module's name, as PEFT picks it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
