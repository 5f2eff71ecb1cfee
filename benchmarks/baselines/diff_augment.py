"""DiffAugment as its authors publish it (mit-han-lab/data-efficient-gans), op for op. What is drawn is given.

Color in passes of their own, translation by a padded copy that a grid of clamped positions indexes, cutout by a mask
that another grid clears. That code draws uniform numbers in the images' dtype; here a cast to it stands for the draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[..., Tensor]  # of images (N, C, H, W) and the seven things drawn for each, (N)


def eager(policy: str) -> Forward:
    """Return the composition of a policy's steps."""

    def call(x: Tensor, *drawn: Tensor) -> Tensor:
        brightness, saturation, contrast, down, right, top, left = drawn
        for step in policy.split(","):
            if step == "color":
                x = colored(x, *(factor.to(x.dtype).view(-1, 1, 1, 1) for factor in (brightness, saturation, contrast)))
            elif step == "translation":
                x = translated(x, down, right)
            else:
                x = cut(x, top, left)
        return x.contiguous()

    return call


def compiled(policy: str, mode: str | None = None) -> Forward:
    """Return the same behind ``torch.compile``, for fixed shapes."""
    torch._dynamo.reset()
    whole: Forward = torch.compile(eager(policy), mode=mode, dynamic=False, fullgraph=True)
    return whole


def colored(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Return x + b, then away from the mean of each pixel's channels, then away from the mean of each image."""
    x = x + brightness
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * saturation + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def translated(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return x moved, of a copy with a border of zeros in which whatever lies outside ends."""
    N, _, H, W = x.shape
    image, row, column = grid(N, H, W, x.device)
    row = (row + down.view(-1, 1, 1) + 1).clamp(0, H + 1)
    column = (column + right.view(-1, 1, 1) + 1).clamp(0, W + 1)
    bordered = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    return bordered[image, row, column].permute(0, 3, 1, 2)


def cut(x: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return x times a mask whose window is cleared; what falls outside is moved to the border's pixels."""
    N, _, H, W = x.shape
    image, row, column = grid(N, (H + 1) // 2, (W + 1) // 2, x.device)
    row = (row + top.view(-1, 1, 1)).clamp(0, H - 1)
    column = (column + left.view(-1, 1, 1)).clamp(0, W - 1)
    mask = torch.ones(N, H, W, dtype=x.dtype, device=x.device)
    mask[image, row, column] = 0
    return x * mask.unsqueeze(1)


def grid(N: int, H: int, W: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the number of the image, the row and the column at each of N H W places."""
    return torch.meshgrid(*(torch.arange(size, device=device) for size in (N, H, W)), indexing="ij")
