"""A convolution forward and backward as a whole, and the operators that tracers see: what they compute and return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference
from fastgan.ops.conv_compute import (
    NOTHING,
    OP,
    fits,
    format_of,
    product,
    settled,
    to_bias,
    to_input,
    to_weight,
)
from fastgan.ops.conv_form import Form
from fastgan.ops.destination import Owners, memory
from fastgan.ops.linear_compute import NOBODY, Gradients, Incoming, as_owned

if TYPE_CHECKING:
    from fastgan.kernels.linear_bwd_input import Below

FORM = "int[2] stride, int[2] padding, int[2] dilation, bool transposed, int[2] output_padding, int upsample"
Told = tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]  # a form in the words of a schema


def told(form: Form) -> Told:
    """Return what an operator is told of a form; it has one group."""
    return form.stride, form.padding, form.dilation, form.transposed, form.output_padding, form.upsample


def heard(
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    upsample: int,
) -> Form:
    """Return the form that an operator was told of."""
    steps, pads, gaps, spare = ((pair[0], pair[1]) for pair in (stride, padding, dilation, output_padding))
    return Form(steps, pads, gaps, transposed=transposed, output_padding=spare, upsample=upsample)


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    activation: str,
    slope: float,
    before: tuple[str, float] = NOTHING,
    like: Tensor | None = None,
) -> Tensor:
    """Return phi(conv(psi(input), weight) + bias) by the kernels, laid out as PyTorch would with weights ``like``."""
    format = format_of(input, weight if like is None else like)
    return product(input, weight, bias, form, activation, slope, before=before, format=format)


def backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[bool],
    form: Form,
    activation: str,
    slope: float,
    before: tuple[str, float] = NOTHING,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients by the kernels; ``input`` of ``size`` is there where its values are needed."""
    x = input if wanted[1] else None
    through = below(input, before) if wanted[0] and input is not None else None
    gx = gw = None
    gb = memory(owners.bias, grad.shape[1:2], grad, owners.lands) if wanted[2] else None
    incoming = Incoming(grad, saved, activation, slope)
    incoming = settled(incoming, weight, x, form, size, wanted[0], through, gb=gb)
    if wanted[0]:
        gx = to_input(incoming, weight, form, size, below=through)
    if x is not None:
        gw = to_weight(incoming, x, weight, form, gb, before=before, owners=owners)
    elif gb is not None:
        to_bias(incoming, gb)
    return gx, gw, gb


def below(input: Tensor, before: tuple[str, float]) -> Below | None:
    """Return what the input gradient goes through behind the product. The input of a piecewise linear psi tells all."""
    from fastgan.kernels.linear_bwd_input import Below

    if before[0] == "none":
        return None
    if before[0] in act.SMOOTH:
        return Below(act.activate(input, *before), *before)
    return Below(input, "leaky_relu", before[1] if before[0] == "leaky_relu" else 0.0)


def plain_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[bool],
    form: Form,
    activation: str,
    slope: float,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients by PyTorch, the definition of right."""
    g = act.times_derivative(grad, saved, activation, slope)
    x = g.new_empty(1).expand(size) if input is None else input
    gx, gw = form.plain_backward(g, x, weight, wanted) if any(wanted[:2]) else (None, None)
    gw = None if gw is None else as_owned(gw, owners.weight)
    return gx, gw, as_owned(g.sum((0, 2, 3)), owners.bias) if wanted[2] else None


def compute(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    upsample: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Run ``fastgan::conv_act``."""
    form = heard(stride, padding, dilation, transposed, output_padding, upsample)
    act.check(activation)
    with torch.autocast(input.device.type, enabled=False):  # the caller has cast
        if not by_reference(OP, input) and fits(input, weight, bias, form):
            return forward(input, weight, bias, form, activation, negative_slope)
        y = act.activate(form.plain(input, weight, bias), activation, negative_slope)
        return y.contiguous(memory_format=format_of(input, weight))


def fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    upsample: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Return an empty output of ``fastgan::conv_act``."""
    form = heard(stride, padding, dilation, transposed, output_padding, upsample)
    depth, cols = form.channels(weight)
    torch._check(input.shape[1] == depth, lambda: f"input {input.shape} does not fit weight {weight.shape}")
    size = (input.shape[0], cols, *form.size(input.shape, weight.shape))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=format_of(input, weight))


def compute_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    upsample: int,
    activation: str,
    negative_slope: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Run ``fastgan::conv_act_backward``."""
    form = heard(stride, padding, dilation, transposed, output_padding, upsample)
    way = plain_backward if by_reference(OP, grad) or not form.mapped else backward
    with torch.autocast(grad.device.type, enabled=False):
        gx, gw, gb = way(grad, input, weight, saved, size, wanted, form, activation, negative_slope)
    if gx is not None:
        gx = gx.contiguous(memory_format=torch.channels_last)
    if gw is not None and gw.stride() != weight.stride():
        gw = torch.empty_like(weight).copy_(gw)
    return [gradient for gradient in (gx, gw, gb) if gradient is not None]


def fake_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    upsample: int,
    activation: str,
    negative_slope: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Return empty outputs of ``fastgan::conv_act_backward``."""
    outputs = []
    if wanted[0]:
        last = torch.channels_last
        outputs.append(torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=last))
    if wanted[1]:
        outputs.append(torch.empty_like(weight))
    if wanted[2]:
        outputs.append(grad.new_empty((grad.shape[1],)))
    return outputs
