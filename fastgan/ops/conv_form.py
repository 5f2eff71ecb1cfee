"""What a convolution is told beside its operands, in torch.nn's words, and the index maps that it comes to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fastgan.kernels.conv_map import Geometry

Pair = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """A convolution of (n, channels, height, width), or a transposed one. One of signals has a height of 1."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False
    output_padding: Pair = (0, 0)
    upsample: int = 1  # nearest neighbour, of the input

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute it by PyTorch."""
        if self.transposed:
            more = self.stride, self.padding, self.output_padding, self.groups, self.dilation
            return F.conv_transpose2d(input, weight, bias, *more)
        if self.upsample > 1:
            input = F.interpolate(input, scale_factor=float(self.upsample), mode="nearest")
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def plain_backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the wanted gradients of input and weight by PyTorch. Where only one is, the other's shape is all."""
        whole = input
        if self.upsample > 1:
            whole = F.interpolate(input, scale_factor=float(self.upsample), mode="nearest")
        more = self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        mask = [wanted[0], wanted[1], False]
        gx, gw, _ = torch.ops.aten.convolution_backward(grad, whole, weight, None, *more, mask)
        if wanted[0] and self.upsample > 1:
            gx = F.avg_pool2d(gx, self.upsample, divisor_override=1)
        return gx if wanted[0] else None, gw if wanted[1] else None

    def channels(self, weight: Tensor) -> Pair:
        """Return the channels of input and output."""
        grid, image = weight.shape[0], weight.shape[1] * self.groups
        return (grid, image) if self.transposed else (image, grid)

    def size(self, input: Sequence[int], weight: Sequence[int]) -> Pair:
        """Return height and width of the output for shapes (n, channels, height, width) and (.., .., R, S)."""
        geometry = self.geometry(input, weight)
        high, wide = (axis.image if self.transposed else axis.grid for axis in geometry)
        return high, wide

    def geometry(self, input: Sequence[int], weight: Sequence[int]) -> Geometry:
        """Return the index maps' geometry for such shapes."""
        return _geometry(self, input[2], input[3], weight[2], weight[3])

    def maps(self) -> tuple[str, str]:
        """Return the index maps of the forward pass and of the input's gradient."""
        if self.transposed:
            return "phase", "gather"
        return "gather", "phase" if self.upsample == 1 else "spread"


@functools.lru_cache(maxsize=4096)
def _geometry(form: Form, high: int, wide: int, *kernel: int) -> Geometry:
    from fastgan.kernels.conv_map import Axis, Geometry

    axes = []
    for at, size in enumerate((high, wide)):
        stride, padding, dilation = form.stride[at], form.padding[at], form.dilation[at]
        reach = dilation * (kernel[at] - 1) + 1
        if form.transposed:
            grid, image = size, (size - 1) * stride - 2 * padding + reach + form.output_padding[at]
        else:
            image, grid = size, (size * form.upsample + 2 * padding - reach) // stride + 1
        axes.append(Axis(image, grid, kernel[at], stride, padding, dilation, form.upsample))
    return Geometry(*axes).lone()
