"""Makes one tiny random model per family, every part of it away from its trivial value, with a tokenizer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import make_bpe_tokenizer

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
_LONG: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0 + 0.01 * index for index in range(24)],
    "long_factor": [1.0 + 0.3 * index for index in range(24)],
}
# name -> (the class's stem in transformers, what its configuration sets)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {**_SMALL, "head_dim": 32, "sliding_window": None}),
    "mistral-window": ("Mistral", {**_SMALL, "sliding_window": 96}),
    "smollm3": (
        "SmolLM3",
        {**_SMALL, "num_hidden_layers": 5, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
    "qwen2": ("Qwen2", {**_SMALL, "tie_word_embeddings": True}),
    "qwen2-linear": ("Qwen2", {**_SMALL, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "qwen3": ("Qwen3", {**_SMALL, "head_dim": 32, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2",
        {**_SMALL, "num_hidden_layers": 4, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3": (
        "Gemma3",
        {**_SMALL, "num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 48}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 5000.0},
    ),
    "phi3": ("Phi3", {**_SMALL, "sliding_window": None, "rope_theta": 250000.0}),
    "phi3-longrope": (
        "Phi3",
        {**_SMALL, "max_position_embeddings": 2048, "original_max_position_embeddings": 512, "rope_scaling": _LONG}
        | {"partial_rotary_factor": 0.75, "sliding_window": None},
    ),
    "gpt2": (
        "GPT2",
        {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 768, "initializer_range": 0.08},
    ),
}


def make_model(
    folder: Path, name: str, *, dtype: str = "float32", tokenizer: Any = make_bpe_tokenizer, **changes: Any
) -> Path:
    """A random model of a row of FAMILIES: no norm is one, no bias zero, so that a lost one shows."""
    import torch
    import transformers

    stem, settings = FAMILIES[name]
    folder.mkdir(parents=True)
    tokenizer(folder)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    settings = {**settings, "vocab_size": size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **changes}
    classes = {"GPT2": ("GPT2Config", "GPT2LMHeadModel"), "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}
    config_class, model_class = classes.get(stem, (f"{stem}Config", f"{stem}ForCausalLM"))
    torch.manual_seed(3)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer is make_bpe_tokenizer:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 1], "pad_token_id": 2}))
    return folder
