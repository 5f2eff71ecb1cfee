"""``conv2d_resample.conv2d_resample``, as StyleGAN's networks use it."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops import conv2d_resample as ops
from fastgan.ops.upfirdn2d import Factor


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Return a convolution behind an up-sampling or in front of a down-sampling: ``fastgan.ops.conv2d_resample``."""
    return ops.conv2d_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter)
