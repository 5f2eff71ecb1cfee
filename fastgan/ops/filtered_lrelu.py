"""filtered_lrelu: StyleGAN3's leaky ReLU at a higher resolution, so that its edges do not alias."""

from __future__ import annotations

import math

from torch import Tensor

from fastgan.ops.gained_act import gained_act
from fastgan.ops.upfirdn2d import Factor, upfirdn2d


def filtered_lrelu(
    input: Tensor,
    up_filter: Tensor | None = None,
    down_filter: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    gain: float = math.sqrt(2),
    negative_slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Return images with a bias, up-sampled, through a leaky ReLU with gain and clamp, and down-sampled.

    Karras et al. 2021, "Alias-Free Generative Adversarial Networks", section 3: a composition of ``gained_act`` and
    ``upfirdn2d``.

    Args:
        input: (n, channels, height, width), as ``upfirdn2d`` takes them.
        up_filter, down_filter: of the two resamplings, (height, width) or (taps); None: 1.
        bias: (channels) or None.
        up, down: how many times larger, then smaller.
        padding: of the up-sampled images, as of ``upfirdn2d``.
        gain, negative_slope, clamp: of the leaky ReLU.
        flip_filter: whether filters are correlated, not convolved.

    Returns:
        (n, channels, ...) in the input's dtype. Gradient order: any, with respect to input and bias.

    Raises:
        UserError: as ``upfirdn2d`` and ``gained_act`` do.
    """
    higher = upfirdn2d(gained_act(input, bias), up_filter, up, 1, padding, flip_filter, up**2)
    active = gained_act(higher, None, 1, "lrelu", negative_slope, gain, clamp)
    return upfirdn2d(active, down_filter, 1, down, 0, flip_filter)
