"""Are all values of a tensor finite, asked of the bits of their exponents: one pass instead of three."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_EXPONENT = {"torch.float16": 0x7C00, "torch.bfloat16": 0x7F80, "torch.float32": 0x7F800000}  # all of its bits are set


def all_finite(values: torch.Tensor) -> bool:
    """Is no value of a float16, bfloat16 or float32 tensor infinite or NaN?"""
    import torch

    mask = _EXPONENT[str(values.dtype)]
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    return not bits.numel() or int(bits.bitwise_and(mask).amax()) != mask
