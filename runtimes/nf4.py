"""Weights put through bitsandbytes' NF4 and back: the base that a QLoRA adapter was really trained on, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract.errors import AssayError

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


def put_on_nf4(
    model: torch.nn.Module, output: torch.nn.Module | None, double_quant: bool, block_size: int = BLOCK_SIZE
) -> list[str]:
    """Replace the weight of every linear layer but `output` (the lm_head) by its NF4 value, in place.

    Returns:
        The names of the layers changed.
    """
    import torch

    changed = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            with torch.no_grad():
                module.weight.copy_(dequantized_nf4(module.weight, double_quant, block_size))
            changed.append(name)
    return changed
