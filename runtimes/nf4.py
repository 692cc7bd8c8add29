"""Weights put through bitsandbytes' NF4 and back: the base that a QLoRA adapter was really trained on, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract.errors import AssayError, listed

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64  # bitsandbytes' default, and what QLoRA training uses


def dequantized_nf4(weight: torch.Tensor, double_quant: bool, block_size: int = BLOCK_SIZE) -> torch.Tensor:
    """Quantize a weight to NF4 (Dettmers et al. 2023) as bitsandbytes' Linear4bit does, and dequantize it again.

    Args:
        weight: float32 [out, in], on any device.
        double_quant: quantize the block scales too.
        block_size: weights per scale.

    Returns:
        float32, of the same shape, on the same device.
    """
    try:
        from bitsandbytes import functional
    except ModuleNotFoundError:
        raise AssayError(
            "NF4 weights need bitsandbytes", hint="in Assay's checkout: pip install -e '.[eval]'"
        ) from None
    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=block_size, compress_statistics=double_quant, quant_type="nf4"
    )
    values: torch.Tensor = functional.dequantize_4bit(packed, state)
    return values.reshape(weight.shape).to(weight.dtype)


def nf4_layers(model: torch.nn.Module, output: torch.nn.Module | None) -> dict[str, torch.nn.Linear]:
    """The layers that QLoRA training keeps in NF4, by name: linear, not `output` (the lm_head).

    Those that transformers keeps in float32 whatever is asked for (T5's feed-forward wo) stay as they are there, too.
    """
    import torch

    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output and name.rpartition(".")[2] not in kept
    }


def put_on_nf4(
    model: torch.nn.Module, output: torch.nn.Module | None, double_quant: bool, block_size: int = BLOCK_SIZE
) -> list[str]:
    """Replace the weight of every layer of `nf4_layers` by its NF4 value, in place.

    Returns:
        The names of the layers changed.

    Raises:
        AssayError: the model has Conv1D layers (GPT-2), whose weights are stored [in, out] and have no NF4 form here.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if stored_turned := [name for name, module in model.named_modules() if isinstance(module, Conv1D)]:
        raise AssayError(
            "Conv1D layers have no NF4 form here", got=listed(stored_turned, 3), hint="take the 16-bit base, W16"
        )
    layers = nf4_layers(model, output)
    with torch.no_grad():
        for module in layers.values():
            module.weight.copy_(dequantized_nf4(module.weight, double_quant, block_size))
    return list(layers)
