"""A tiny GPT-2, and adapters of every PEFT type with values that are far from where training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.export.makers import gpt2_tokenizer


def make_gpt2(folder: Path, *, tie: bool = True, seed: int = 0, dtype: str = "float32", **config: Any) -> Path:
    """A random GPT-2: hidden 64, 4 heads, 2 layers, context 128, biases that are not zero."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    gpt2_tokenizer(folder)
    settings = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": len(AutoTokenizer.from_pretrained(folder)),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": tie,
        "initializer_range": 0.08,
        **config,
    }
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def make_peft(folder: Path, base: Path, config: Any, *, seed: int = 1, rows: int | None = None) -> Path:
    """An adapter of any type, every trained value moved away from its beginning; `rows` resizes the embeddings."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        plain.resize_token_embeddings(rows)
    model = get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "ia3_l" in name or "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def peft_merge(base: Path, adapter: Path) -> dict[str, Any]:
    """PEFT's own merge in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: dict[str, Any] = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return merged


def logits(model: Any) -> Any:
    """Logits of a fixed text of eight ids."""
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 20, 30, 40, 50, 7, 8, 9]])).logits
