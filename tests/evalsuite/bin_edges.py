"""A base whose 16-bit weights lie at the edges of NF4's bins, on the wrong side: only as NF4 is it the trained one.

An adapter trained on it as NF4 is good there, and put on the 16-bit weights it is not: what base change looks for.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import open_artifact
from contract.example import Example
from contract.prompt import PromptSpec
from tests.evalsuite.chain import Chain

if TYPE_CHECKING:
    import torch

_STEPS = (0.14, 0.1, 0.07, 0.05, 0.03)  # of a block's largest weight, the farthest first: NF4's bins differ in width
_BLOCK = 64
_ROUNDS = 3  # the way to a larger loss is looked for again from where the weights are by then


def base_at_bin_edges(chain: Chain, examples: list[Example], folder: Path) -> Path:
    """The chain's base with every weight moved as far as NF4 does not notice, to where the adapter's loss is larger."""
    from safetensors.torch import load_file, save_file

    from runtimes.torch_load import load_adapter

    shutil.copytree(chain.base, folder)
    model = load_adapter(chain.artifacts["adapter"], base_weights="nf4", merge_dtype=None).model
    tensors = load_file(folder / "model.safetensors")
    trained = {name: tensor.float() for name, tensor in tensors.items()}
    for _ in range(_ROUNDS):
        for name, worse in _gradients(model, chain, examples).items():
            tensors[name] = _moved(trained[name], worse.sign()).half()
        for name, weight in _layers(model).items():
            weight.data = tensors[name].float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _layers(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights under the adapter, by the base's names."""
    named = {name: weight for name, weight in model.named_parameters() if name.endswith("base_layer.weight")}
    return {name.replace(".base_layer", ""): weight for name, weight in named.items()}


def _gradients(model: torch.nn.Module, chain: Chain, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Of the loss on the examples' summaries, by the base's names of its linear layers."""
    import torch

    from runtimes import load_runtime

    runtime = load_runtime(open_artifact(chain.base), threads=1)
    layers = _layers(model)
    for weight in layers.values():
        weight.requires_grad_(True)
        weight.grad = None
    try:
        for example in examples:
            messages = PromptSpec().messages(example.document)
            prompt, target = runtime.encode(messages), runtime.encode_completion(messages, example.references[0])
            logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    finally:
        runtime.close()
    return {name: weight.grad for name, weight in layers.items() if weight.grad is not None}


def _moved(weight: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Each weight moved along `sign` as far as its NF4 value stays; float32 [out, in]."""
    import torch

    from runtimes.nf4 import dequantized_nf4

    rounded = dequantized_nf4(weight, double_quant=True)
    blocks = weight.reshape(-1, _BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    fixed = (blocks.abs() == largest).reshape(weight.shape)  # the block's scale hangs on these
    width = largest.expand_as(blocks).reshape(weight.shape)
    moved, done = weight.clone(), fixed.clone()
    for step in _STEPS:
        tried = (rounded + step * width * sign).half().float()
        tried = torch.where(done | (tried.abs() >= width), moved, tried)
        kept = dequantized_nf4(tried, double_quant=True) == rounded
        moved, done = torch.where(kept, tried, moved), done | kept
    return moved
