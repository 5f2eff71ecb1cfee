"""The modulated convolutions by the arguments of StyleGAN2's and StyleGAN3's own functions."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops import modulated_conv2d as ops
from fastgan.ops.upfirdn2d import Factor


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> Tensor:
    """Return StyleGAN2's modulated convolution: ``fastgan.ops.modulated_conv2d``.

    ``fused_modconv`` changes nothing: images are scaled, not a weight for each sample.
    """
    return ops.modulated_conv2d(x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight)


def normalized_modulated_conv2d(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    demodulate: bool = True,
    padding: Factor = 0,
    input_gain: Tensor | None = None,
) -> Tensor:
    """Return what StyleGAN3's ``modulated_conv2d`` returns: ``fastgan.ops.modulated_conv2d``'s normalised form."""
    return ops.normalized_modulated_conv2d(x, w, s, demodulate, padding, input_gain)
