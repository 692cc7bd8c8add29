"""The keys of a PEFT adapter's file, whichever PEFT version or trainer wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = "base_model.model."
# What is trained as a parameter, and what as a module with a weight of its own.
_PARAMETERS = (
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_E",
    "ranknum",
    "ia3_l",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "trainable_tokens_delta",
)
_MODULES = ("lora_A", "lora_B", "ln_tuning_layers", "modules_to_save")
_WRAPPERS = {"module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}  # of trainers, not of PEFT
_KEY = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join((*_PARAMETERS, *_MODULES))})(\.(?P<tail>[\w.]+))?")
# The types that act as changed weights would: they can be merged, and run unmerged as the reference of what is merged.
MERGEABLE_TYPES = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "LN_TUNING", "TRAINABLE_TOKENS")
WHOLE = ("weight", "bias")  # parts that take a base tensor's place


@dataclass(frozen=True)
class PeftKey:
    """One key, taken apart."""

    module: str  # of the base, by its full name there: "model.layers.0.self_attn.q_proj"
    part: str  # "lora_A", "lora_B.bias", "ia3_l" …; "weight" or "bias" for a whole tensor; "original" for none
    canonical: str  # the key as today's PEFT writes it
    adapter_name: str | None  # an adapter's name inside the key: PEFT leaves it out, some trainers do not


def parse_key(key: str) -> PeftKey:
    """Take a key apart; what is no part of PEFT comes back as a part that nobody knows."""
    words = [word for word in key.split(".") if word not in _WRAPPERS]
    name = ".".join(words)
    rest = name.removeprefix(PREFIX)
    if found := _KEY.fullmatch(rest):
        return _trained(found["module"], found["part"], found["tail"])
    module, _, leaf = rest.rpartition(".")
    owner, _, wrapper = module.rpartition(".")
    if wrapper == "original_module":  # PEFT saves it with resized embeddings; the trained module takes its place
        return PeftKey(owner, "original", PREFIX + rest, None)
    if wrapper == "base_layer":
        module = owner.removesuffix(".token_adapter")
    return PeftKey(module, leaf, PREFIX + rest, None)


def _trained(module: str, part: str, tail: str | None) -> PeftKey:
    words = tail.split(".") if tail else []
    leaf = words.pop() if words and words[-1] in WHOLE else None
    adapter_name = ".".join(words) or None
    kept = "token_adapter." if module.endswith(".token_adapter") else ""  # LoRA's token rows; those alone have none
    module = module.removesuffix(".token_adapter")
    if part == "modules_to_save":
        return PeftKey(module, leaf or "", f"{PREFIX}{module}.{leaf}", adapter_name)
    if part == "ln_tuning_layers":
        return PeftKey(module, leaf or "", f"{PREFIX}{module}.{part}.{leaf}", adapter_name)
    if part in _PARAMETERS:  # an old DoRA key ends with the weight of its layer
        return PeftKey(module, part, f"{PREFIX}{module}.{kept}{part}", adapter_name)
    name = part if leaf != "bias" else f"{part}.bias"
    return PeftKey(module, name, f"{PREFIX}{module}.{part}" + (f".{leaf}" if leaf else ""), adapter_name)


def adapter_names(keys: Iterable[str]) -> set[str]:
    """The adapters' names found inside keys."""
    return {name for key in keys if (name := parse_key(key).adapter_name)}
