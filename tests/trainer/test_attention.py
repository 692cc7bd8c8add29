"""The CPU's attention in training: the same sums as the fused kernel's, to bfloat16, and blind to what comes after."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from trainer.attention import ATTENTION, MOST_TOKENS, is_for

pytestmark = pytest.mark.engine


def model(attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        initializer_range=0.08,
    )
    made = LlamaForCausalLM(config)
    made.set_attn_implementation(attention)
    return made


def test_logits_and_gradients_are_those_of_the_fused_kernel() -> None:
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    found = {}
    for attention in ("sdpa", ATTENTION):
        made = model(attention)
        logits = made(input_ids=ids).logits
        logits.log_softmax(-1)[..., 5].sum().backward()
        found[attention] = logits, made.model.layers[0].self_attn.q_proj.weight.grad
    for ours, theirs in zip(found[ATTENTION], found["sdpa"], strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_in_bfloat16_it_stays_near() -> None:
    ids = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = model("sdpa")(input_ids=ids).logits.softmax(-1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = model(ATTENTION)(input_ids=ids).logits.float().softmax(-1)
            fused = model("sdpa")(input_ids=ids).logits.float().softmax(-1)
    assert 0 < (ours - exact).abs().mean() < 1.5 * (fused - exact).abs().mean()


def test_padding_on_the_right_changes_nothing() -> None:
    made = model(ATTENTION).eval()
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        alone = made(input_ids=ids).logits
        padded = made(input_ids=torch.cat([ids, torch.zeros(1, 9, dtype=torch.long)], 1)).logits[:, :20]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "device", "dtype", "tokens", "wanted"),
    [
        (LlamaConfig(), "cpu", torch.bfloat16, 512, True),
        (LlamaConfig(), "cuda", torch.bfloat16, 512, False),
        (LlamaConfig(), "cpu", torch.float32, 512, False),
        (LlamaConfig(), "cpu", torch.bfloat16, MOST_TOKENS + 1, False),
        (MistralConfig(sliding_window=64), "cpu", torch.bfloat16, 512, False),
        (MistralConfig(sliding_window=512, max_position_embeddings=512), "cpu", torch.bfloat16, 512, True),
    ],
)
def test_it_is_taken_only_where_it_is_right(
    config: LlamaConfig, device: str, dtype: torch.dtype, tokens: int, wanted: bool
) -> None:
    assert is_for(config, device, dtype, tokens) is wanted
