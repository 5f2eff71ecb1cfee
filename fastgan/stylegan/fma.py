"""``fma.fma``, which StyleGAN2's modulated convolution calls."""

from __future__ import annotations

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c, each broadcast to the others. Gradient order: any."""
    return torch.addcmul(c, a, b)
