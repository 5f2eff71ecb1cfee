"""``filtered_lrelu.filtered_lrelu``, as StyleGAN3's networks use it."""

from __future__ import annotations

import math

from torch import Tensor

from fastgan.ops import filtered_lrelu as ops
from fastgan.ops.upfirdn2d import Factor
from fastgan.stylegan.implementation import implementation


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    """Return images with a bias, up-sampled, through a leaky ReLU and down-sampled: ``fastgan.ops.filtered_lrelu``."""
    with implementation(impl):
        return ops.filtered_lrelu(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)
