"""How a linear layer's products are made: by plain PyTorch, by our kernels, or by the library with one pass of ours.

Under ``auto`` each product goes to cuBLAS where that was measured to be faster, or surely is; what our kernel does in
its operand loads and its epilogue is then done by one elementwise kernel before or after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import extension
from fastgan.ops.backend import by_extension, register
from fastgan.ops.destination import Owners, memory
from fastgan.ops.linear_choice import by_library, in_load, room
from fastgan.ops.linear_extension import gradients

if TYPE_CHECKING:
    from fastgan.kernels.linear import Dropout
    from fastgan.kernels.linear_bwd_input import Below
    from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics

OP = register("linear_act")
MOST_ROWS = 16_384  # whose tiles one program sums up behind a product: more of them, and a pass of its own is faster

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias, where they are wanted
NOBODY = Owners()


class Incoming(NamedTuple):
    """A gradient [M, N], and what it has yet to go through: an activation, or the statistics of a raw output."""

    grad: Tensor
    saved: Tensor | None = None
    activation: str = "none"
    slope: float = 0.0
    correction: Correction | None = None
    column: Tensor | None = None  # the bias's gradient, where it was summed up in passing


def fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    if weight.dim() != 2 or input.dim() == 0:
        return False
    (N, K), dtype, device = weight.shape, input.dtype, input.device
    return (
        input.shape[-1] == K
        and weight.dtype == dtype
        and weight.device == device
        and input.layout is weight.layout is torch.strided
        and (bias is None or (bias.dtype == dtype and bias.device == device and bias.shape == (N,)))
    )


def forward(
    backend: str, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor | None]:
    """Return the output and what its derivative is taken from: the output, the pre-activation, or nothing."""
    keeps_pre = act.saves_pre_activation(activation, negative_slope)
    if backend == "triton":
        rows = input if input.dim() == 2 else input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
        if by_extension(OP, rows) and not keeps_pre:
            output, pre = extension.linear_act(rows, weight, bias, activation, negative_slope), None
        else:
            output, pre = product(rows, weight, bias, activation, negative_slope, keeps_pre)
        if input.dim() != 2:
            shape = (*input.shape[:-1], weight.shape[0])
            output, pre = output.view(shape), None if pre is None else pre.view(shape)
    else:
        pre = F.linear(input, weight, bias)
        output = act.activate(pre, activation, negative_slope)
    return output, None if activation == "none" else pre if keeps_pre else output


def backward(
    backend: str,
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    saved: Tensor | None,
    activation: str,
    negative_slope: float,
    wanted: Sequence[bool],
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients; ``input`` is there where the weight's is wanted, ``weight`` where the input's is."""
    g, x, mask = grad, input, saved
    if grad.dim() != 2:
        rows = math.prod(grad.shape[:-1])
        g = grad.reshape(rows, grad.shape[-1])
        mask = None if saved is None else saved.reshape(g.shape)
        x = None if input is None else input.reshape(rows, input.shape[-1])
    mask = None if mask is None else mask.contiguous()
    gx = gw = gb = None
    if backend == "triton":
        gb = memory(owners.bias, g.shape[1:], g, owners.lands) if wanted[2] else None
        if by_extension(OP, g) and not act.saves_pre_activation(activation, negative_slope):
            gx, gw = gradients(g, x, weight, mask, gb, activation, negative_slope, wanted, owners)
            return _shaped(gx, grad), gw, gb
        incoming = settled(Incoming(g, mask, activation, negative_slope), weight, x, gb=gb)
        if wanted[0] and weight is not None:
            gx = to_input(incoming, weight)
        if wanted[1] and x is not None:
            gw = memory(owners.weight, (g.shape[1], x.shape[1]), g, owners.lands)
            to_weight(incoming, x, gw, gb)
        elif gb is not None:
            to_bias(incoming, gb)
    else:
        g = act.times_derivative(g, mask, activation, negative_slope)
        gx = g @ weight if wanted[0] and weight is not None else None
        gw = as_owned(g.t() @ x, owners.weight) if wanted[1] and x is not None else None
        gb = as_owned(g.sum(0), owners.bias) if wanted[2] else None
    return _shaped(gx, grad), gw, gb


def _shaped(gx: Tensor | None, grad: Tensor) -> Tensor | None:
    """Return the gradient of the rows [M, K] as that of the input (..., K)."""
    return gx if gx is None or grad.dim() == 2 else gx.view(*grad.shape[:-1], gx.shape[-1])


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    store_pre: bool = False,
    *,
    norm: Norm | None = None,
    dropout: Dropout | None = None,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return drop(phi(x [M, K] weight [N, K]^T + bias)), and the pre-activation where it is asked for.

    ``norm`` is what x has yet to go through, ``statistics`` where those of the result are written.
    """
    from fastgan.kernels import linear as kernels

    (M, K), N = x.shape, weight.shape[0]
    if statistics is not None and M > MOST_ROWS:
        y, _ = product(x, weight, bias, activation, slope, norm=norm)
        _measured(y, statistics)
        return y, None
    beside = (dropout, statistics, store_pre or None)
    library = by_library("linear_fwd", M, N, K, x, room=room(norm, *beside))
    if norm is not None and (
        library or not in_load("linear_fwd", M, N, K, x, False, room(norm, *beside), room(*beside))
    ):
        x, norm = _normalised(x, norm), None
    if library:
        return _product_by_library(x, weight, bias, activation, slope, store_pre, dropout, statistics)
    if norm is None and dropout is None and statistics is None:
        return kernels.linear_fwd(x, weight, bias, activation, slope, store_pre)
    more: dict[str, Any] = {"norm": norm, "dropout": dropout, "statistics": statistics}
    return kernels.linear_fwd(x, weight, bias, activation, slope, store_pre, **more)


def _product_by_library(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    store_pre: bool,
    dropout: Dropout | None,
    statistics: Statistics | None,
) -> tuple[Tensor, Tensor | None]:
    if activation == "none" and dropout is None:
        y = F.linear(x, weight, bias)
        if statistics is not None:
            _measured(y, statistics)
        return y, None
    from fastgan.kernels.bias_act import bias_act_fwd

    v = torch.mm(x, weight.t())
    return bias_act_fwd(v, bias, activation, slope, **_drawn(dropout), store_pre=store_pre, in_place=True)


def settled(
    incoming: Incoming,
    weight: Tensor | None,
    x: Tensor | None,
    below: Below | None = None,
    norm: Norm | None = None,
    gb: Tensor | None = None,
) -> Incoming:
    """Form g once where the library will read it, which cannot do so while it loads; the bias's gradient with it."""
    to_input = weight is not None and _input_by_library(incoming, weight, below, norm)
    to_weight = x is not None and _weight_by_library(incoming, x, norm)
    if incoming.saved is None or not (to_input or to_weight):
        return incoming
    if incoming.correction is not None:
        return Incoming(_formed(incoming))
    from fastgan.kernels.bias_act import bias_act_bwd

    g, saved, activation, slope, *_ = incoming
    g, column = bias_act_bwd(g, saved, activation, slope, with_bias=gb is not None and to_weight)
    return Incoming(g, column=None if gb is None or column is None else gb.copy_(column))


def _input_by_library(incoming: Incoming, weight: Tensor, below: Below | None, norm: Norm | None) -> bool:
    (M, N), K, masked = incoming.grad.shape, weight.shape[1], incoming.saved is not None
    heavy = 32 if norm is not None or incoming.correction is not None else room(below)
    return by_library("linear_bwd_input", M, K, N, incoming.grad, masked, heavy)


def _weight_by_library(incoming: Incoming, x: Tensor, norm: Norm | None) -> bool:
    (M, N), K, masked = incoming.grad.shape, x.shape[1], incoming.saved is not None
    return by_library("linear_bwd_weight", N, K, M, incoming.grad, masked, _weight_room(incoming, norm))


def _weight_room(incoming: Incoming, norm: Norm | None) -> int:
    return (128, 32, 16)[(norm is not None) + (incoming.correction is not None)]


def to_input(
    incoming: Incoming,
    weight: Tensor,
    *,
    below: Below | None = None,
    norm: Norm | None = None,
    raw: Tensor | None = None,
    to: NormGradients | None = None,
) -> Tensor:
    """Return g weight [M, K], gone through the activation below, or through the norm of the output ``raw``."""
    g, saved, activation, slope, correction, _ = incoming
    tall = to is not None and g.shape[0] > MOST_ROWS
    if not tall and not _input_by_library(incoming, weight, below, norm):
        from fastgan.kernels.linear_bwd_input import linear_bwd_input

        more: dict[str, Any] = {"correction": correction, "below": below, "norm": norm, "raw": raw, "to": to}
        return linear_bwd_input(g, saved, weight, activation, slope, **more)
    if tall:
        gx = to_input(incoming, weight)
    else:
        gx = torch.mm(_formed(incoming), weight)
    if norm is not None and raw is not None:
        from fastgan.kernels.batch_norm_act import batch_norm_act_bwd

        return batch_norm_act_bwd(gx, raw, norm, to)
    if below is not None:
        from fastgan.kernels.bias_act import bias_act_bwd

        drawn = _drawn(below.dropout)
        return bias_act_bwd(gx, below.saved, below.activation, below.slope, **drawn)[0]
    return gx


def to_weight(incoming: Incoming, x: Tensor, gw: Tensor, gb: Tensor | None, *, norm: Norm | None = None) -> None:
    """Write g^T u to gw [N, K], u being x or x normalised, and the sum of g over the batch to gb [N], if it is given.

    Both are contiguous, in fp32 or the operands' dtype; gb may have been written in passing.
    """
    g, saved, activation, slope, correction, column = incoming
    gb = gb if column is None else None
    library = _weight_by_library(incoming, x, norm)
    if norm is not None:
        size, masked = (g.shape[1], x.shape[1], g.shape[0]), saved is not None
        rooms = _weight_room(incoming, norm), _weight_room(incoming, None)
        if library or not in_load("linear_bwd_weight", *size, g, masked, *rooms):
            x, norm = _normalised(x, norm), None
    if library:
        g = _formed(incoming)
        _multiply(g.t(), x, gw)
        if gb is not None:
            summed(g, gb)
        return
    from fastgan.kernels.linear_bwd_weight import linear_bwd_weight

    places: dict[str, Any] = {"gw": gw, "gb": gb}
    linear_bwd_weight(g, saved, x, activation, slope, gb is not None, correction=correction, norm=norm, **places)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a b to ``out``, by the library; into fp32 it rounds nothing on a GPU."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda and out.dtype == torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        out.copy_(torch.mm(a, b))


def to_bias(incoming: Incoming, gb: Tensor) -> None:
    """Write the sum of g over the batch to gb [N]."""
    if incoming.column is None:
        summed(_formed(incoming), gb)


def summed(values: Tensor, out: Tensor) -> Tensor:
    """Write the sum over rows [M, N] to ``out`` [N], rounded once, and return it."""
    return torch.sum(values, 0, dtype=out.dtype, out=out)


def as_owned(gradient: Tensor, owner: Tensor | None) -> Tensor:
    """Return a gradient in its owner's dtype."""
    return gradient if owner is None else gradient.to(owner.dtype)


def _measured(y: Tensor, statistics: Statistics) -> None:
    from fastgan.kernels.batch_norm_act import batch_norm_stats

    batch_norm_stats(y, statistics)


def _normalised(x: Tensor, norm: Norm) -> Tensor:
    from fastgan.kernels.batch_norm_act import batch_norm_act_fwd

    return batch_norm_act_fwd(x, norm)


def _formed(incoming: Incoming) -> Tensor:
    g, saved, activation, slope, correction, _ = incoming
    if correction is not None and saved is not None:
        from fastgan.kernels.batch_norm_act import batch_norm_correct

        return batch_norm_correct(g, saved, correction)
    if saved is None:
        return g
    from fastgan.kernels.bias_act import bias_act_bwd

    return bias_act_bwd(g, saved, activation, slope)[0]


def _drawn(dropout: Dropout | None) -> dict[str, Any]:
    if dropout is None:
        return {}
    rng, threshold, scale, first = dropout
    return {"rng": rng, "threshold": threshold, "scale": scale, "dropout_first": first}
