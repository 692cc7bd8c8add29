"""What each PEFT type can become, as data; as Markdown: `python -m export.peft_types > docs/adapters.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Fate:
    """What becomes of one kind of adapter."""

    merged: bool  # into its base, and so into every format
    lora_gguf: bool  # into llama.cpp's adapter format, which holds one A and one B per weight and alpha/rank
    why: str
    instead: str = ""  # what to do where it is refused


_TRAIN_LORA = "train a LoRA adapter, or run base and adapter with PEFT"
BY_PEFT = "merge it with PEFT (merge_and_unload, then save_pretrained) and export that folder"
_INPUTS = Fate(False, False, "soft prompts are inputs, not weights", _TRAIN_LORA)
_CACHE = Fate(False, False, "it lives in the key-value cache, not in weights", _TRAIN_LORA)
_ROUTED = Fate(False, False, "its weights differ from input to input", _TRAIN_LORA)
_UNKNOWN = Fate(False, False, "its arithmetic is not known here; PEFT has it", BY_PEFT)

_OTHERS = """
    ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD
    SHIRA SUPERTUNING TINYLORA UNILORA VBLORA VERA WAVEFT
"""

LORA = "LORA"
TYPES: Mapping[str, Fate] = {
    LORA: Fate(True, True, "W + scale · B·A; its variants are below"),
    "ADALORA": Fate(True, True, "W + scale · B·diag(E)·A, each weight of the rank that was left to it"),
    "IA3": Fate(True, False, "a vector times inputs or outputs is a weight with scaled columns or rows"),
    "LOHA": Fate(True, False, "W + scale · (w1_a·w1_b) ⊙ (w2_a·w2_b), which is not of low rank"),
    "LOKR": Fate(True, False, "W + scale · w1 ⊗ w2, which is not of low rank"),
    "LN_TUNING": Fate(True, False, "the trained norms take the place of the base's"),
    "TRAINABLE_TOKENS": Fate(True, False, "the trained rows take the place of the embeddings' own"),
    "PROMPT_TUNING": _INPUTS,
    "MULTITASK_PROMPT_TUNING": _INPUTS,
    "P_TUNING": _INPUTS,
    "CPT": _INPUTS,
    "PREFIX_TUNING": _CACHE,
    "CARTRIDGE": _CACHE,
    "ADAPTION_PROMPT": Fate(False, False, "its attention has a gate that no base layer has", _TRAIN_LORA),
    "POLY": _ROUTED,
    "XLORA": _ROUTED,
    "SHADOW": _ROUTED,
    "LILY": Fate(False, False, "its experts are chosen for each input", _TRAIN_LORA),
    **dict.fromkeys(_OTHERS.split(), _UNKNOWN),
}

# LoRA's settings that change what the delta is.
SETTINGS: Mapping[str, Fate] = {
    "rank_pattern, alpha_pattern": Fate(True, True, "each weight has its own rank and scale"),
    "use_rslora": Fate(True, True, "the scale is alpha/√rank"),
    "use_dora": Fate(True, False, "the sum is scaled to a learned length per output, which A and B cannot say"),
    "fan_in_fan_out": Fate(True, True, "weights stored [in, out]; read off the architecture, not off this setting"),
    "modules_to_save": Fate(True, False, "whole trained modules take the place of the base's"),
    "trainable_token_indices": Fate(True, False, "trained rows take the place of the embeddings' own"),
    "ensure_weight_tying": Fate(True, False, "embeddings that are one tensor change together; llama.cpp changes one"),
    "bias": Fate(True, False, "trained biases take the place of the base's"),
    "lora_bias": Fate(True, False, "B's bias, scaled, is added to the layer's; refused together with DoRA"),
    "init_lora_weights": Fate(
        False,
        False,
        "true, false, gaussian, eva, mica and orthogonal are fine; pissa, olora, corda, loftq and lora_ga begin on "
        "changed base weights, and others are not known here",
        "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA",
    ),
    "target_parameters": Fate(False, False, "it targets bare parameters, such as fused experts", BY_PEFT),
    "layer_replication": Fate(False, False, "it repeats layers of the base", BY_PEFT),
    "alora_invocation_tokens": Fate(False, False, "it acts behind certain tokens only", _TRAIN_LORA),
    "use_qalora": Fate(False, False, "QA-LoRA pools its inputs", BY_PEFT),
    "use_bdlora": Fate(False, False, "its matrices are block-diagonal", BY_PEFT),
    "arrow_config": Fate(False, False, "it routes between adapters", _TRAIN_LORA),
    "kasa_config": Fate(False, False, "KaSA changes the base's singular values", BY_PEFT),
    "velora_config": Fate(False, False, "VeLoRA's arithmetic is not known here", BY_PEFT),
    "monteclora_config": Fate(False, False, "MonteCLoRA's arithmetic is not known here", BY_PEFT),
    "megatron_config": Fate(False, False, "it is split for Megatron", "gather it with Megatron first"),
}

_HEAD = """# Adapters

What a PEFT adapter can become. *Merged*: `assay merge` computes it in float32, tensor by tensor, equal to PEFT's own
`merge_and_unload`; from there it goes into every format, and `assay export` takes the adapter itself too. *LoRA GGUF*:
what llama.cpp's adapter format can hold. What is refused is refused before anything is written.

This page is made from the program (`python -m export.peft_types > docs/adapters.md`); a test holds it true.
"""
_TAIL = """## Names in the file

Keys may begin with `base_model.model.`, with what a trainer wrapped around it, or with nothing; they may hold the
adapter's name (`lora_A.default.weight`), and older PEFT versions' spelling. Each key must have a place in the base, and
each linear layer that `target_modules` names (a list, `all-linear`, a regular expression) must have its keys. Weights
are read from safetensors only.

## Tied embeddings

Where the base uses its input embeddings as output embeddings and the adapter makes the two differ, the merged model is
untied: it stores both, and its config.json says so. Trained token rows are put into both, as PEFT does.

## NF4

A QLoRA adapter may be merged onto the dequantized NF4 weights it was trained on (`--base NF4`), for linear layers;
GPT-2's Conv1D has no NF4 form here.
"""


def reference() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        "## PEFT types\n",
        *_table("type", TYPES),
        "\n## LoRA's settings\n",
        *_table("setting", SETTINGS),
        "",
        _TAIL,
    ]
    return "\n".join(parts)


def _table(name: str, fates: Mapping[str, Fate]) -> list[str]:
    rows = [f"| {name} | merged | LoRA GGUF | why | instead |", "|---|---|---|---|---|"]
    for fate, group in groupby(fates.items(), key=lambda item: item[1]):
        said = ["yes" if yes else "refused" for yes in (fate.merged, fate.lora_gguf)]
        shown = ", ".join(f"`{word}`" for key, _ in group for word in key.split(", "))
        rows.append(f"| {shown} | {said[0]} | {said[1]} | {fate.why} | {fate.instead} |")
    return rows


if __name__ == "__main__":
    print(reference(), end="")
