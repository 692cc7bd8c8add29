"""The table of model families GGUF files are written for, and the way from a folder to its row."""

from __future__ import annotations

from typing import Any

from contract.errors import AssayError, did_you_mean, listed
from contract.model_config import T5_FAMILY, head_is_tied, scales_tied_head
from contract.model_folder import context_of
from export import gguf_gemma, gguf_gpt2, gguf_llama, gguf_phi, gguf_qwen, gguf_t5
from export.gguf_family import Config, Family, GgufModel, resolved_config
from export.source import Source

FAMILIES: tuple[Family, ...] = (
    *gguf_llama.FAMILIES,
    *gguf_qwen.FAMILIES,
    *gguf_gemma.FAMILIES,
    *gguf_phi.FAMILIES,
    *gguf_gpt2.FAMILIES,
    *gguf_t5.FAMILIES,
)
_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "shared.weight")


def read_model(source: Source) -> GgufModel:
    """What `source`'s family says of it.

    Raises:
        AssayError: no such family, with the nearest known one; or what llama.cpp cannot express, all of it named.
    """
    family = _family(source)
    missing = [key for key in family.keys if source.config.get(key) is None]
    if missing:
        raise AssayError(
            f"this model cannot be written as a llama.cpp {family.arch}",
            where=source.where,
            got=listed(f"{key} is missing" for key in missing),
        )
    names = set(source.weights.names())
    config = Config(
        _with_head(resolved_config(source.folder, source.config, source.where), source, names), source.where
    )
    embedding = next((name for name in _EMBEDDINGS if name in names), None)
    rows = source.weights.shape(embedding)[0] if embedding else config["vocab_size"]
    if rows != config["vocab_size"]:
        config.problem(f"vocab_size {config['vocab_size']}: {embedding} has {rows} rows")
    model = family.read(config, rows)
    config.raise_problems(family.arch)
    return model


def _with_head(made: dict[str, Any], source: Source, names: set[str]) -> dict[str, Any]:
    """The configuration with what its head is in truth: transformers 5 calls every T5 tied."""
    usual = bool(made.get("tie_word_embeddings"))
    found = {
        **made,
        "tie_word_embeddings": head_is_tied(source.config, names, usual=usual, where=source.where),
    }
    if source.config.get("model_type") in T5_FAMILY:
        found.setdefault("n_positions", context_of(source.folder))
        found["scale_decoder_outputs"] = scales_tied_head(source.config, source.where)
    return found


def _family(source: Source) -> Family:
    seen = source.config.get("architectures") or []
    known = {name: family for family in FAMILIES for name in family.classes}
    for name in seen:
        if name in known:
            return known[name]
    if source.config.get("is_encoder_decoder"):
        raise AssayError(
            "llama.cpp cannot run this encoder-decoder model, so no GGUF is written",
            where=source.where,
            got=listed(seen) or "no architectures in config.json",
            hint=f"export it to ONNX: assay export onnx {source.where} --out DIR",
        )
    raise AssayError(
        "GGUF is not written for this model family",
        where=source.where,
        got=listed(seen) or "no architectures in config.json",
        expected=", ".join(known),
        hint=did_you_mean(seen[0], known) if seen else None,
    )
