"""Structural similarity of images, at one scale and at five: 1 for equal images, about 0 for unrelated ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # Wang et al., 2004, section III.C
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales: Wang et al., 2003, section 3.2
RANGE = 2.0  # between the least and the largest value of an image in [-1, 1]
LEAST_SIDE = WINDOW * 2 ** (len(WEIGHTS) - 1)  # below it the window does not fit into the coarsest scale


def name_for(side: int) -> str:
    """What is measured of images whose shorter side is ``side``: ``MS-SSIM``, or ``SSIM`` where five halvings do not
    fit.
    """
    return "MS-SSIM" if side >= LEAST_SIDE else "SSIM"


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """MS-SSIM of pairs of images where they are large enough for it (sides of 176 or more), else SSIM: ``(n,)``.

    Args:
        first: Images ``(n, C, H, W)`` in [-1, 1].
        second: As many of that shape.
    """
    return ms_ssim(first, second) if name_for(min(first.shape[2:])) == "MS-SSIM" else ssim(first, second)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair: ``(n,)``; Wang et al., 2004, eq. 13, mean over pixels and channels.

    The window is Gaussian, 11x11, or the largest odd one that fits; only where it lies within the image.
    """
    structure, luminance = _maps(first, second)
    return (structure * luminance).mean((1, 2, 3))


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair: ``(n,)``; Wang et al., 2003, eq. 7, for sides of 176 or more.

    Negative factors count as 0.
    """
    product = torch.ones(len(first), dtype=first.dtype, device=first.device)
    for scale, weight in enumerate(WEIGHTS):
        structure, luminance = _maps(first, second)
        last = scale == len(WEIGHTS) - 1
        factor = (structure * luminance if last else structure).mean((1, 2, 3))
        product = product * factor.relu() ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return product


def _maps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The product of contrast and structure, and the luminance, at each place of the window."""
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    moments = torch.cat([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, mixed = _blurred(moments).chunk(5)
    var1, var2, cov = square1 - mean1**2, square2 - mean2**2, mixed - mean1 * mean2
    structure = (2 * cov + c2) / (var1 + var2 + c2)
    return structure, (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)


def _blurred(images: Tensor) -> Tensor:
    side = min(*images.shape[2:], WINDOW)
    side -= 1 - side % 2
    at = torch.arange(side, dtype=images.dtype, device=images.device) - side // 2
    window = torch.exp(-(at**2) / (2 * SIGMA**2))
    window = window / window.sum()
    planes = images.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.squeeze(1).unflatten(0, images.shape[:2])
