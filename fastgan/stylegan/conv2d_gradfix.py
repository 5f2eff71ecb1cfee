"""``conv2d_gradfix``: convolutions that can be differentiated as often as asked, without gradients nobody asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastgan.ops.conv import conv2d_act, conv_transpose2d_act

enabled = True  # networks set it; it changes nothing
Size = int | Sequence[int]


def no_weight_gradients(disable: bool = True) -> Any:
    """Return a context in which nothing changes: gradients of weights are formed where they are asked for alone."""
    return contextlib.nullcontext()


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Return torch.nn.functional.conv2d of them: ``fastgan.ops.conv2d_act`` without activation."""
    return conv2d_act(input, weight, bias, stride, padding, dilation, groups, activation="none")


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Return torch.nn.functional.conv_transpose2d of them: ``fastgan.ops.conv_transpose2d_act`` without activation."""
    return conv_transpose2d_act(
        input, weight, bias, stride, padding, output_padding, groups, dilation, activation="none"
    )
