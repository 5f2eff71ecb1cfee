"""Convolutions and transposed ones, of signals and of images, with their bias and activations as one op each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference
from fastgan.ops.conv_autograd import apply
from fastgan.ops.conv_compute import NOTHING, OP, fits
from fastgan.ops.conv_form import Form, check_upsample, enlarged
from fastgan.ops.registration import transformed
from fastgan.ops.shadow import lowered, used

Size = int | Sequence[int]


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    pre_activation: str = "none",
    pre_negative_slope: float = 0.2,
    upsample: int = 1,
) -> Tensor:
    """Return activation(conv2d(upsampled(pre_activation(input)), weight) + bias).

    Where the kernels run it is one launch forward and two backward, at any stride, padding and dilation. What they do
    not take (``groups`` above 1, ``upsample`` with a stride) is PyTorch's convolution with the activations around it.

    Args:
        input: (n, in_channels, height, width) or (in_channels, height, width), any strides, best channels_last; bf16,
            fp16 or fp32, or any other dtype by plain PyTorch.
        weight: (out_channels, in_channels / groups, kernel height, kernel width), any strides, of the same dtype.
        bias: (out_channels) or None.
        stride, padding, dilation, groups: as torch.nn.functional.conv2d; padding may be ``"same"`` or ``"valid"``.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.
        pre_activation: what the input goes through first, one of the same; padding is 0 behind it.
        pre_negative_slope: of that leaky ReLU.
        upsample: how many times the input is scaled up before, by the nearest neighbour; the larger image is not made.

    Returns:
        (n, out_channels, ...) or (out_channels, ...) of the size and layout that PyTorch would return, channels_last
        where input or weight is; in the input's dtype, accumulated in fp32; under autocast as conv2d.

    Gradient order: any, with respect to input, weight and bias. What is saved for it: input, weight, and the output
    (the pre-activation for a negative slope). Functional transforms (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown activation, or an ``upsample`` that is no positive int.
        RuntimeError: for operands that do not go together, as torch.nn.functional.conv2d raises it.
    """
    more, after = (stride, padding, dilation, groups), (activation, negative_slope)
    before = pre_activation, pre_negative_slope
    return _run(_Call(F.conv2d, 2, more, after, before, check_upsample(upsample)), input, weight, bias)


def conv1d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    pre_activation: str = "none",
    pre_negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(conv1d(pre_activation(input), weight) + bias), as ``conv2d_act`` on images of height 1.

    Args:
        input: (n, in_channels, length) or (in_channels, length), any strides, best with its channels innermost.
        weight: (out_channels, in_channels / groups, kernel length).
        bias: (out_channels) or None.
        stride, padding, dilation, groups: as torch.nn.functional.conv1d; padding may be ``"same"`` or ``"valid"``.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``conv2d_act``.

    Returns:
        (n, out_channels, ...) or (out_channels, ...), contiguous; with its channels innermost where those of the input
        are, though PyTorch's is contiguous then, too. Dtypes, gradients and errors are those of ``conv2d_act``.
    """
    more, after = (stride, padding, dilation, groups), (activation, negative_slope)
    return _run(_Call(F.conv1d, 1, more, after, (pre_activation, pre_negative_slope)), input, weight, bias)


def conv_transpose2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    pre_activation: str = "none",
    pre_negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(conv_transpose2d(pre_activation(input), weight) + bias).

    Args:
        input: (n, in_channels, height, width) or (in_channels, height, width), any strides, best channels_last.
        weight: (in_channels, out_channels / groups, kernel height, kernel width), any strides.
        bias: (out_channels) or None.
        stride, padding, output_padding, groups, dilation: as torch.nn.functional.conv_transpose2d.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``conv2d_act``.

    Returns:
        (n, out_channels, ...) or (out_channels, ...). Dtypes, gradients and errors are those of ``conv2d_act``.
    """
    more, after = (stride, padding, output_padding, groups, dilation), (activation, negative_slope)
    return _run(_Call(F.conv_transpose2d, 2, more, after, (pre_activation, pre_negative_slope)), input, weight, bias)


def conv_transpose1d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    pre_activation: str = "none",
    pre_negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(conv_transpose1d(pre_activation(input), weight) + bias), on images of height 1.

    Args:
        input: (n, in_channels, length) or (in_channels, length), any strides, best with its channels innermost.
        weight: (in_channels, out_channels / groups, kernel length).
        bias: (out_channels) or None.
        stride, padding, output_padding, groups, dilation: as torch.nn.functional.conv_transpose1d.
        activation, negative_slope, pre_activation, pre_negative_slope: as in ``conv2d_act``.

    Returns:
        (n, out_channels, ...) or (out_channels, ...). Dtypes, gradients and errors are those of ``conv2d_act``.
    """
    more, after = (stride, padding, output_padding, groups, dilation), (activation, negative_slope)
    return _run(_Call(F.conv_transpose1d, 1, more, after, (pre_activation, pre_negative_slope)), input, weight, bias)


class _Call(NamedTuple):
    """A convolution as it was asked for."""

    function: Callable[..., Tensor]  # of torch.nn.functional
    dims: int
    more: tuple[Any, ...]  # its arguments behind the bias
    after: tuple[str, float]
    before: tuple[str, float]
    upsample: int = 1

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute it by PyTorch, which takes any operands, or refuses them in its own words."""
        x = input if self.before[0] == "none" else act.activate(input, *self.before)
        if self.upsample > 1:
            x = enlarged(x, self.upsample) if x.dim() == 4 else enlarged(x[None], self.upsample)[0]
        return act.activate(self.function(x, weight, bias, *self.more), *self.after)


def _run(call: _Call, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if by_reference(OP, input):
        return call.plain(input, weight, bias)
    x, weight, bias, shades, direct = lowered(input, weight, bias)
    if (x is not input and by_reference(OP, x)) or transformed():
        return call.plain(x, weight, bias)
    act.check(call.after[0])
    before = (act.check(call.before[0]), call.before[1]) if call.before[0] != "none" else NOTHING
    found = _form(call, x, weight)
    if found is None:
        return call.plain(x, weight, bias)
    form, behind = found
    image, filters = _image(x, call.dims), weight if call.dims == 2 else weight.unsqueeze(2)
    if shades[0] is not None and call.dims == 1:
        shades = shades[0].unsqueeze(2), shades[1]
    if any(behind):  # PyTorch too makes the larger image first
        image, before = act.activate(image, *before), NOTHING
        image = F.pad(enlarged(image, call.upsample), (0, behind[1], 0, behind[0]))
    if not fits(image, *used(filters, bias, shades), form):
        return call.plain(x, weight, bias)
    y = apply(image, filters, bias, form, *call.after, direct, before, shades)
    y = y if call.dims == 2 else y.squeeze(2)
    return y if x.dim() == call.dims + 2 else y.squeeze(0)


def _image(input: Tensor, dims: int) -> Tensor:
    """See a signal as an image of height 1, and one without a batch as a batch of one."""
    image = input if input.dim() == dims + 2 else input.unsqueeze(0)
    return image if dims == 2 else image.unsqueeze(2)


def _form(call: _Call, input: Tensor, weight: Tensor) -> tuple[Form, tuple[int, int]] | None:
    """Return the form, and how much is padded behind before it, beyond what it pads itself; None: for PyTorch."""
    dims = call.dims
    if weight.dim() != dims + 2 or input.dim() not in (dims + 1, dims + 2):
        return None
    transposed = len(call.more) == 5
    if transposed:
        stride, padding, spare, groups, dilation = call.more
    else:
        (stride, padding, dilation, groups), spare = call.more, 0
    steps, gaps, spares = _pair(stride, dims, 1), _pair(dilation, dims, 1), _pair(spare, dims, 0)
    if steps is None or gaps is None or spares is None:
        return None
    behind = (0, 0)
    if isinstance(padding, str):
        if transposed or padding not in ("same", "valid") or (padding == "same" and steps != (1, 1)):
            return None
        kernel = tuple(weight.shape[2:]) if dims == 2 else (1, weight.shape[2])
        total = [gap * (size - 1) if padding == "same" else 0 for gap, size in zip(gaps, kernel, strict=True)]
        ahead, behind = (total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2)
    else:
        pads = _pair(padding, dims, 0)
        if pads is None:
            return None
        ahead = pads
    upsample = 1 if any(behind) else call.upsample
    return Form(steps, ahead, gaps, groups, transposed, spares, upsample), behind


def _pair(value: Any, dims: int, for_height: int) -> tuple[int, int] | None:
    """Return what holds for height and width, as PyTorch reads an int or a sequence; None where it would refuse it."""
    if isinstance(value, int):
        return (value, value) if dims == 2 else (for_height, value)
    if not isinstance(value, (tuple, list)) or len(value) not in (1, dims):
        return None
    if not all(isinstance(part, int) for part in value):
        return None
    return (value[0], value[-1]) if dims == 2 else (for_height, value[0])
