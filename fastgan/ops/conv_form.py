"""What a convolution is told beside its operands, in torch.nn's words, and the index maps that it comes to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import UserError

if TYPE_CHECKING:
    from fastgan.kernels.conv_map import Geometry

Pair = tuple[int, int]


class Form(NamedTuple):
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
        return F.conv2d(
            enlarged(input, self.upsample), weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def plain_backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the wanted gradients of input and weight by PyTorch. Where only one is, the other's shape is all."""
        whole = enlarged(input, self.upsample)
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

    @property
    def mapped(self) -> bool:
        """Whether the kernels' index maps cover it."""
        return self.groups == 1 and (self.upsample == 1 or (self.stride == (1, 1) and not self.transposed))

    @property
    def sound(self) -> bool:
        """Whether PyTorch would not refuse it."""
        spare = zip(self.output_padding, self.stride, self.dilation, strict=True)
        return (
            min(*self.stride, *self.dilation) > 0
            and min(self.padding) >= 0
            and all(0 <= more < max(step, wide) for more, step, wide in spare if self.transposed)
        )

    def size(self, input: Sequence[int], weight: Sequence[int]) -> Pair:
        """Return height and width of the output for shapes (n, channels, height, width) and (.., .., R, S)."""
        return self._along(0, input[2], weight[2]), self._along(1, input[3], weight[3])

    def _along(self, at: int, size: int, kernel: int) -> int:
        stride, padding, reach = self.stride[at], self.padding[at], self.dilation[at] * (kernel - 1) + 1
        if self.transposed:
            return (size - 1) * stride - 2 * padding + reach + self.output_padding[at]
        return (size * self.upsample + 2 * padding - reach) // stride + 1

    def geometry(self, input: Sequence[int], weight: Sequence[int]) -> Geometry:
        """Return the index maps' geometry for such shapes."""
        return _geometry(self, input[2], input[3], weight[2], weight[3])

    def maps(self) -> tuple[str, str]:
        """Return the index maps of the forward pass and of the input's gradient."""
        if self.transposed:
            return "phase", "gather"
        return "gather", "phase" if self.upsample == 1 else "spread"


def check_upsample(upsample: int) -> int:
    """Return a factor to scale up by if it is one; raise a ``UserError`` if it is not."""
    if not isinstance(upsample, int) or upsample < 1:
        raise UserError(f"upsample {upsample!r}: give a whole number, 1 or more")
    return upsample


def enlarged(images: Tensor, times: int) -> Tensor:
    """Scale images (n, channels, height, width) up by the nearest neighbour."""
    return images if times == 1 else F.interpolate(images, scale_factor=float(times), mode="nearest")


@functools.lru_cache(maxsize=4096)
def _geometry(form: Form, high: int, wide: int, *kernel: int) -> Geometry:
    from fastgan.kernels.conv_map import Axis, Geometry

    axes = []
    for at, size in enumerate((high, wide)):
        image, grid = size, form._along(at, size, kernel[at])
        if form.transposed:
            image, grid = grid, image
        how = form.stride[at], form.padding[at], form.dilation[at], form.upsample
        axes.append(Axis(image, grid, kernel[at], *how))
    return Geometry(*axes).lone()
