"""Convolutions of torch.nn with the activations in front and behind: Conv1dAct, Conv2dAct, and the transposed ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import conv1d_act, conv2d_act, conv_transpose1d_act, conv_transpose2d_act
from fastgan.ops.activation import check
from fastgan.ops.conv_form import check_upsample, enlarged

One = int | tuple[int]
Two = int | tuple[int, int]


class _Fused(nn.Module):
    """What stands around a convolution: an activation of its input, and one of its output."""

    activation: str
    negative_slope: float
    pre_activation: str
    pre_negative_slope: float

    def _surround(self, activation: str, negative_slope: float, pre_activation: str, pre_slope: float) -> None:
        self.activation = check(activation)
        self.negative_slope = negative_slope
        self.pre_activation = check(pre_activation)
        self.pre_negative_slope = pre_slope

    def _around(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "pre_activation": self.pre_activation,
            "pre_negative_slope": self.pre_negative_slope,
        }

    def extra_repr(self) -> str:
        """Show the activations behind what torch.nn's class shows."""
        text = f"{super().extra_repr()}, activation={self.activation}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        if self.pre_activation != "none":
            text += f", pre_activation={self.pre_activation}"
        if self.pre_activation == "leaky_relu":
            text += f", pre_negative_slope={self.pre_negative_slope}"
        return text


class Conv1dAct(_Fused, nn.Conv1d):
    """``nn.Conv1d`` with its activations, as one op: same parameters, same initial values, same ``state_dict``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            torch.nn.Conv1d.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``Conv2dAct``.

    Shape: (n, in_channels, length) -> (n, out_channels, length'), or both without n.

    Raises:
        UserError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: One,
        stride: One = 1,
        padding: str | One = 0,
        dilation: One = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        pre_activation: str = "none",
        pre_negative_slope: float = 0.2,
    ) -> None:
        size = in_channels, out_channels, kernel_size
        nn.Conv1d.__init__(self, *size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        self._surround(activation, negative_slope, pre_activation, pre_negative_slope)

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(conv1d(pre_activation(input)) + bias)."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        more = self.stride, padding, self.dilation, self.groups
        return conv1d_act(input, self.weight, self.bias, *more, **self._around())


class Conv2dAct(_Fused, nn.Conv2d):
    """``nn.Conv2d`` with its activations, as one op: same parameters, same initial values, same ``state_dict``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            torch.nn.Conv2d.
        activation: of the output: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.
        pre_activation: of the input, one of the same; a residual block's, in front of its convolution.
        pre_negative_slope: of that leaky ReLU.
        upsample: how many times the input is scaled up before, by the nearest neighbour.

    Shape: (n, in_channels, height, width) -> (n, out_channels, height', width'), or both without n. Gradients of any
    order; see ``fastgan.ops.conv2d_act``.

    Raises:
        UserError: for an unknown activation, or an ``upsample`` that is no positive int.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Two,
        stride: Two = 1,
        padding: str | Two = 0,
        dilation: Two = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        pre_activation: str = "none",
        pre_negative_slope: float = 0.2,
        upsample: int = 1,
    ) -> None:
        size = in_channels, out_channels, kernel_size
        nn.Conv2d.__init__(self, *size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        self._surround(activation, negative_slope, pre_activation, pre_negative_slope)
        self.upsample = check_upsample(upsample)

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(conv2d(upsampled(pre_activation(input))) + bias)."""
        padding: Any = self.padding
        upsample = self.upsample
        if self.padding_mode != "zeros":
            input, padding, upsample = self._padded(input), 0, 1
        more = self.stride, padding, self.dilation, self.groups
        return conv2d_act(input, self.weight, self.bias, *more, **self._around(), upsample=upsample)

    def _padded(self, input: Tensor) -> Tensor:
        """Scale up and pad with the image's own values, to which the activation may come later."""
        whole = input if input.dim() == 4 else input.unsqueeze(0)
        whole = enlarged(whole, self.upsample)
        whole = F.pad(whole, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return whole if input.dim() == 4 else whole.squeeze(0)

    def extra_repr(self) -> str:
        """Show what is done to the input as well."""
        return super().extra_repr() + (f", upsample={self.upsample}" if self.upsample > 1 else "")


class ConvTranspose1dAct(_Fused, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with its activations, as one op: same parameters, initial values and ``state_dict``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as torch.nn.ConvTranspose1d.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``Conv2dAct``.

    Shape: (n, in_channels, length) -> (n, out_channels, length'), or both without n.

    Raises:
        UserError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: One,
        stride: One = 1,
        padding: One = 0,
        output_padding: One = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: One = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        pre_activation: str = "none",
        pre_negative_slope: float = 0.2,
    ) -> None:
        how = stride, padding, output_padding, groups, bias, dilation, padding_mode, device, dtype
        nn.ConvTranspose1d.__init__(self, in_channels, out_channels, kernel_size, *how)  # type: ignore[arg-type]
        self._surround(activation, negative_slope, pre_activation, pre_negative_slope)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return activation(conv_transpose1d(pre_activation(input)) + bias), of ``output_size`` where it is given."""
        spare = _spare(self, input, output_size, 1)
        more: Any = self.stride, self.padding, spare, self.groups, self.dilation
        return conv_transpose1d_act(input, self.weight, self.bias, *more, **self._around())


class ConvTranspose2dAct(_Fused, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with its activations, as one op: same parameters, initial values and ``state_dict``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as torch.nn.ConvTranspose2d.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``Conv2dAct``.

    Shape: (n, in_channels, height, width) -> (n, out_channels, height', width'), or both without n.

    Raises:
        UserError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Two,
        stride: Two = 1,
        padding: Two = 0,
        output_padding: Two = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Two = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        pre_activation: str = "none",
        pre_negative_slope: float = 0.2,
    ) -> None:
        how = stride, padding, output_padding, groups, bias, dilation, padding_mode, device, dtype
        nn.ConvTranspose2d.__init__(self, in_channels, out_channels, kernel_size, *how)  # type: ignore[arg-type]
        self._surround(activation, negative_slope, pre_activation, pre_negative_slope)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return activation(conv_transpose2d(pre_activation(input)) + bias), of ``output_size`` where it is given."""
        spare = _spare(self, input, output_size, 2)
        more: Any = self.stride, self.padding, spare, self.groups, self.dilation
        return conv_transpose2d_act(input, self.weight, self.bias, *more, **self._around())


def _spare(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d, input: Tensor, output_size: list[int] | None, dims: int
) -> Any:
    """Return the output padding that makes the output of that size."""
    how: Any = layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
    return layer._output_padding(input, output_size, *how)
