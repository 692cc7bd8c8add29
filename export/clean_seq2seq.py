"""How an encoder-decoder model generates, gathered in generation_config.json and checked before it is written."""

from __future__ import annotations

import json
from typing import Any

from contract.errors import AssayError, listed

# transformers moves these out of config.json (PretrainedConfig._get_global_generation_defaults).
_GENERATION = (
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)
_OFF = {"num_beam_groups": 1, "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False}
_IDS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


def moved(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json without generation settings, and those settings. What the decoder starts with stays in both."""
    settings = {key: config[key] for key in _GENERATION if config.get(key) is not None}
    if config.get("decoder_start_token_id") is not None:
        settings["decoder_start_token_id"] = config["decoder_start_token_id"]
    return {key: value for key, value in config.items() if key not in _GENERATION}, settings


def checked(settings: dict[str, Any], rows: int, where: str) -> tuple[dict[str, Any], list[str]]:
    """Settings that make sense together, and what had to be mended for that.

    Args:
        settings: of generation_config.json.
        rows: embedding rows: ids lie below.
        where: for messages.

    Raises:
        AssayError: nothing says what the decoder starts with, or a setting is none that transformers knows.
    """
    found, notes = dict(settings), []

    def drop(key: str, why: str) -> None:
        notes.append(f"generation_config.json: {key} {json.dumps(found.pop(key))} removed ({why})")

    if "decoder_start_token_id" not in found and isinstance(found.get("bos_token_id"), int):
        found["decoder_start_token_id"] = found["bos_token_id"]
        notes.append("generation_config.json: decoder_start_token_id is bos_token_id, as transformers takes it")
    if problems := _problems(found, rows):
        raise AssayError("the model cannot be asked to generate as its files say", where=where, got=listed(problems))
    for key, value in _OFF.items():
        if key in found and found[key] != value:
            drop(key, "not for a model that is served")
    if found.get("min_length", 0) and found["min_length"] > found.get("max_length", found["min_length"]):
        drop("min_length", f"above max_length {found['max_length']}")
    if found.get("early_stopping") and found.get("num_beams", 1) == 1:
        drop("early_stopping", "there are no beams")
    if found.get("length_penalty", 1.0) != 1.0 and found.get("num_beams", 1) == 1:
        drop("length_penalty", "there are no beams")
    return found, notes


def _problems(found: dict[str, Any], rows: int) -> list[str]:
    problems = []
    if "decoder_start_token_id" not in found:
        problems.append("decoder_start_token_id: missing")
    for key in _IDS:
        ids = found.get(key, [])
        for token in ids if isinstance(ids, list) else [ids]:
            if not isinstance(token, int) or not 0 <= token < rows:
                problems.append(f"{key}: {json.dumps(token)}, the embeddings have {rows} rows")
    for key, least in (("num_beams", 1), ("no_repeat_ngram_size", 0), ("max_length", 1), ("min_length", 0)):
        value = found.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{key}: {json.dumps(value)}, not a number from {least}")
    for key in ("length_penalty", "repetition_penalty"):
        value = found.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(f"{key}: {json.dumps(value)}, not a number")
    if found.get("early_stopping", False) not in (True, False, "never"):
        problems.append(f'early_stopping: {json.dumps(found["early_stopping"])}, not true, false or "never"')
    return problems
