"""The table of architectures that are read from GGUF, and the config.json each of them is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from contract.errors import AssayError, did_you_mean
from export.from_gguf.header import Header
from export.from_gguf.rope import rope_config
from export.from_gguf.weights import is_duplicate

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Read:
    """A row of the table."""

    model_class: str  # as config.json's architectures names it
    model_type: str
    embedding: str  # the checkpoint's name of the input embeddings
    config: Callable[[Header, int], dict[str, Any]]  # (header, embedding rows)


def read_config(header: Header) -> tuple[Read, dict[str, Any]]:
    """The row of a file's architecture, and its config.json but for the tokenizer's ids and the dtype.

    Raises:
        AssayError: an architecture that is not read, with those that are; or one that says what its class cannot.
    """
    row = READ.get(header.arch)
    if row is None:
        raise AssayError(
            "a GGUF of this architecture is not read",
            where=header.where,
            got=header.arch,
            expected=", ".join(READ),
            hint=did_you_mean(header.arch, READ),
        )
    if header.arch == "t5" and _has(header, "enc.blk.1.attn_rel_b.weight"):  # relative positions of every layer
        row = replace(row, model_class="UMT5ForConditionalGeneration", model_type="umt5")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise AssayError("the file has no embeddings", where=header.where, expected="token_embd.weight")
    rows = embedding.shape[0]
    if header.own("vocab_size") not in (None, rows):
        raise AssayError(
            "the metadata and the embeddings disagree",
            where=f"{header.where}: {header.arch}.vocab_size",
            expected=f"{rows}, the rows of token_embd.weight",
            got=str(header.own("vocab_size")),
        )
    return row, {
        "architectures": [row.model_class],
        "model_type": row.model_type,
        "vocab_size": rows,
        **row.config(header, rows),
    }


def _has(header: Header, name: str) -> bool:
    return name in header.tensors


def _decoder(header: Header, *, partial_rope: bool = False) -> dict[str, Any]:
    """What every decoder with grouped attention and RMS norms has."""
    hidden, heads = header.number("embedding_length"), header.number("attention.head_count")
    head_dim = header.number("attention.key_length", hidden // heads)
    _same(header, "attention.value_length", head_dim)
    turned = header.number("rope.dimension_count", head_dim)
    found = {
        "hidden_size": hidden,
        "intermediate_size": header.number("feed_forward_length"),
        "num_hidden_layers": header.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.number("context_length"),
        "rms_norm_eps": header.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": not _has(header, "output.weight"),
        **rope_config(header, head_dim),
    }
    if turned != head_dim:
        if not partial_rope:
            _same(header, "rope.dimension_count", head_dim)
        share = turned / head_dim
        found["partial_rotary_factor"] = share
        found["rope_parameters"] = {**found["rope_parameters"], "partial_rotary_factor": share}
    return found


def _same(header: Header, key: str, expected: int) -> None:
    """Raise where the file has another number for `key` than this family can have."""
    if header.own(key) not in (None, expected):
        raise AssayError(
            "the class that is written has no place for this number",
            where=f"{header.where}: {header.arch}.{key}",
            expected=str(expected),
            got=str(header.own(key)),
        )


def _llama(header: Header, _rows: int) -> dict[str, Any]:
    return {
        **_decoder(header),
        "hidden_act": "silu",
        "attention_bias": _has(header, "blk.0.attn_q.bias"),
        "mlp_bias": _has(header, "blk.0.ffn_down.bias"),
    }


def _smollm3(header: Header, _rows: int) -> dict[str, Any]:
    found = _decoder(header)
    del found["head_dim"]
    layers = found["num_hidden_layers"]
    return {
        **found,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "layer_types": [_FULL] * layers,
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "no_rope_layer_interval": 4,
    }


def _qwen2(header: Header, _rows: int) -> dict[str, Any]:
    found = _decoder(header)
    if found["head_dim"] * found["num_attention_heads"] == found["hidden_size"]:
        del found["head_dim"]  # its class has none
    return {**found, "hidden_act": "silu", "use_sliding_window": False}


def _qwen3(header: Header, _rows: int) -> dict[str, Any]:
    return {**_decoder(header), "hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _phi3(header: Header, _rows: int) -> dict[str, Any]:
    found = _decoder(header, partial_rope=True)
    del found["head_dim"]
    context = found["max_position_embeddings"]
    window = header.own("attention.sliding_window")
    return {
        **found,
        "hidden_act": "silu",
        "original_max_position_embeddings": header.number("rope.scaling.original_context_length", context),
        "sliding_window": window if window and window < context else None,
    }


def _layer_types(header: Header, layers: int, interval: int) -> list[str]:
    """Which layers slide: each said by itself, or all but every so manieth (`interval`, where the file is silent)."""
    pattern = header.own("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise AssayError(
                "the pattern of sliding layers does not fit",
                where=header.where,
                expected=f"{layers} layers",
                got=str(len(pattern)),
            )
        return [_SLIDING if slides else _FULL for slides in pattern]
    every = interval if pattern is None else int(pattern)
    return [_SLIDING if every and (layer + 1) % every else _FULL for layer in range(layers)]


def _gemma(header: Header, interval: int, largest: int) -> dict[str, Any]:
    found = _decoder(header)
    layers, heads = found["num_hidden_layers"], found["num_attention_heads"]
    return {
        **found,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        # llama.cpp derives the scale of attention from the sizes, and knows the largest model by its layers
        "query_pre_attn_scalar": found["hidden_size"] // heads if layers == largest else found["head_dim"],
        "sliding_window": header.number("attention.sliding_window"),
        "layer_types": _layer_types(header, layers, interval),
        "final_logit_softcapping": _cap(header, "final_logit_softcapping"),
    }


def _cap(header: Header, key: str) -> float | None:
    return None if header.own(key) is None else header.real(key)


def _gemma2(header: Header, _rows: int) -> dict[str, Any]:
    found = _gemma(header, 2, 46)
    caps = {
        "attn_logit_softcapping": header.real("attn_logit_softcapping", 50.0),  # llama.cpp's own defaults
        "final_logit_softcapping": header.real("final_logit_softcapping", 30.0),
    }
    return {**found, **caps}


def _gemma3(header: Header, _rows: int) -> dict[str, Any]:
    found = _gemma(header, 6, 62)
    local = header.real("rope.freq_base_swa", 10000.0)
    return {
        **found,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "rope_local_base_freq": local,
        "rope_parameters": {
            _FULL: found["rope_parameters"],
            _SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def _gpt2(header: Header, _rows: int) -> dict[str, Any]:
    hidden = header.number("embedding_length")
    return {
        "n_embd": hidden,
        "n_layer": header.number("block_count"),
        "n_head": header.number("attention.head_count"),
        "n_inner": header.number("feed_forward_length", 4 * hidden),
        "n_positions": header.number("context_length"),
        "layer_norm_epsilon": header.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": not _has(header, "output.weight") or is_duplicate(header),
    }


def _t5(header: Header, _rows: int) -> dict[str, Any]:
    tied, eps = not _has(header, "output.weight"), header.real("attention.layer_norm_rms_epsilon")
    if header.real("attention.layer_norm_epsilon", eps) != eps:
        _same(header, "attention.layer_norm_epsilon", int(eps))
    layers, width = header.number("block_count"), header.number("attention.key_length")
    _same(header, "attention.value_length", width)
    gated = _has(header, "enc.blk.0.ffn_gate.weight")
    return {
        "is_encoder_decoder": True,
        "d_model": header.number("embedding_length"),
        "d_kv": width,
        "d_ff": header.number("feed_forward_length"),
        "num_layers": layers,
        "num_decoder_layers": header.number("decoder_block_count", layers),
        "num_heads": header.number("attention.head_count"),
        "relative_attention_num_buckets": header.number("attention.relative_buckets_count"),
        "relative_attention_max_distance": 128,  # llama.cpp's, which no key changes
        "layer_norm_epsilon": eps,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "n_positions": header.number("context_length"),
        "decoder_start_token_id": header.number("decoder_start_token_id"),
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
    }


_EMBED = "model.embed_tokens.weight"
READ: dict[str, Read] = {
    "llama": Read("LlamaForCausalLM", "llama", _EMBED, _llama),
    "smollm3": Read("SmolLM3ForCausalLM", "smollm3", _EMBED, _smollm3),
    "qwen2": Read("Qwen2ForCausalLM", "qwen2", _EMBED, _qwen2),
    "qwen3": Read("Qwen3ForCausalLM", "qwen3", _EMBED, _qwen3),
    "gemma2": Read("Gemma2ForCausalLM", "gemma2", _EMBED, _gemma2),
    "gemma3": Read("Gemma3ForCausalLM", "gemma3_text", _EMBED, _gemma3),
    "phi3": Read("Phi3ForCausalLM", "phi3", _EMBED, _phi3),
    "gpt2": Read("GPT2LMHeadModel", "gpt2", "transformer.wte.weight", _gpt2),
    "t5": Read("T5ForConditionalGeneration", "t5", "shared.weight", _t5),
}
