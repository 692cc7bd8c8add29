"""Attention for training on a CPU in bfloat16: plain matrix products, twice as fast there as the fused kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from contract.model_folder import plain_causal

ATTENTION = "matmul_causal"
MOST_TOKENS = 1024  # rows longer than this would hold too large score matrices for the backward pass


def is_for(config: Any, device: str, dtype: torch.dtype, max_length: int) -> bool:
    """Does this model, trained so, gain by it, and see everything before each position in every layer?"""
    plain = plain_causal(config) and not getattr(config, "attn_logit_softcapping", None)
    return plain and device == "cpu" and dtype == torch.bfloat16 and max_length <= MOST_TOKENS


def matmul_causal(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention over whole rows that are padded on the right, if at all; it needs no mask and takes none.

    Args:
        module: the attention layer.
        query: [rows, heads, tokens, head_dim].
        key: [rows, key-value heads, tokens, head_dim].
        value: like `key`.
        attention_mask: None, which is what transformers hands to an attention that has no mask function.
        dropout: on the weights.
        scaling: of the products; None: 1/√head_dim.
        **kwargs: not used.

    Returns:
        [rows, tokens, heads, head_dim] and the weights [rows, heads, tokens, tokens], in the autocast dtype.
    """
    assert attention_mask is None
    groups = getattr(module, "num_key_value_groups", 1)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = query @ repeat_kv(key, groups).transpose(2, 3)
    scores = scores + _future(scores.shape[-1], scores.dtype)
    with torch.autocast("cpu", enabled=False):  # it would take the softmax to float32, and all that follows it
        weights = torch.softmax(scores, dim=-1)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), weights


@lru_cache(maxsize=64)
def _future(tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """What hides the positions behind each position: [tokens, tokens], 0 up to it and very low beyond."""
    return torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype).triu(1)


AttentionInterface.register(ATTENTION, matmul_causal)
