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
from fastgan.ops.backend import only_ours, register

if TYPE_CHECKING:
    from fastgan.kernels.linear import Dropout
    from fastgan.kernels.linear_bwd_input import Below
    from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics

OP = register("linear_act")
MOST_KEPT = 4096  # choices

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias, where they are wanted
_choices: dict[tuple[Any, ...], bool] = {}


class Incoming(NamedTuple):
    """A gradient [M, N], and what it has yet to go through: an activation, or the statistics of a raw output."""

    grad: Tensor
    saved: Tensor | None = None
    activation: str = "none"
    slope: float = 0.0
    correction: Correction | None = None


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
        incoming = settled(Incoming(g, mask, activation, negative_slope), weight, x)
        if wanted[0] and weight is not None:
            gx = to_input(incoming, weight)
        if wanted[1] and x is not None:
            gw, gb = to_weight(incoming, x, wanted[2])
        elif wanted[2]:
            gb = act.times_derivative(g, mask, activation, negative_slope).sum(0)
    else:
        g = act.times_derivative(g, mask, activation, negative_slope)
        gx = g @ weight if wanted[0] and weight is not None else None
        gw = g.t() @ x if wanted[1] and x is not None else None
        gb = g.sum(0) if wanted[2] else None
    if gx is not None and grad.dim() != 2:
        gx = gx.view(*grad.shape[:-1], gx.shape[-1])
    return gx, gw, gb


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

    library = by_library("linear_fwd", x.shape[0], weight.shape[0], x.shape[1], x)
    if norm is not None and (library or not _in_load(x, weight.shape[0])):
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
            from fastgan.kernels.batch_norm_act import batch_norm_stats

            batch_norm_stats(y, statistics)
        return y, None
    from fastgan.kernels.bias_act import bias_act_fwd

    v = torch.mm(x, weight.t())
    return bias_act_fwd(v, bias, activation, slope, **_drawn(dropout), store_pre=store_pre, in_place=True)


def settled(incoming: Incoming, weight: Tensor | None, x: Tensor | None) -> Incoming:
    """Form g once where the library will read it: it cannot do so while it loads."""
    M, N = incoming.grad.shape
    if incoming.saved is None:
        return incoming
    if (weight is not None and by_library("linear_bwd_input", M, weight.shape[1], N, incoming.grad, True)) or (
        x is not None and by_library("linear_bwd_weight", N, x.shape[1], M, incoming.grad, True)
    ):
        return Incoming(_formed(incoming))
    return incoming


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
    g, saved, activation, slope, correction = incoming
    if not by_library("linear_bwd_input", g.shape[0], weight.shape[1], g.shape[1], g, saved is not None):
        from fastgan.kernels.linear_bwd_input import linear_bwd_input

        more: dict[str, Any] = {"correction": correction, "below": below, "norm": norm, "raw": raw, "to": to}
        return linear_bwd_input(g, saved, weight, activation, slope, **more)
    gx = torch.mm(_formed(incoming), weight)
    if norm is not None and raw is not None:
        from fastgan.kernels.batch_norm_act import batch_norm_act_bwd

        return batch_norm_act_bwd(gx, raw, norm, to)
    if below is not None:
        from fastgan.kernels.bias_act import bias_act_bwd

        drawn = _drawn(below.dropout)
        return bias_act_bwd(gx, below.saved, below.activation, below.slope, **drawn)[0]
    return gx


def to_weight(
    incoming: Incoming, x: Tensor, with_bias: bool, *, norm: Norm | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return g^T u [N, K], u being x or x normalised, and the sum of g over the batch where it is asked for."""
    g, saved, activation, slope, correction = incoming
    library = by_library("linear_bwd_weight", g.shape[1], x.shape[1], g.shape[0], g, saved is not None)
    if norm is not None and (library or not _in_load(x, g.shape[1])):
        x, norm = _normalised(x, norm), None
    if library:
        g = _formed(incoming)
        return torch.mm(g.t(), x), g.sum(0) if with_bias else None
    from fastgan.kernels.linear_bwd_weight import linear_bwd_weight

    return linear_bwd_weight(g, saved, x, activation, slope, with_bias, correction=correction, norm=norm)


def by_library(op: str, rows: int, cols: int, depth: int, operand: Tensor, masked: bool = False) -> bool:
    """Whether cuBLAS makes a product of that size, rows x cols sums over depth, on the operand's device.

    ``masked``: the incoming gradient has yet to go through something.
    """
    if only_ours() or not rows * cols * depth:
        return False
    exact = operand.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision
    key = (op, rows, cols, depth, operand.dtype, operand.device, exact, masked)
    choice = _choices.get(key)
    if choice is None:
        from fastgan.kernels.tile import Problem, Target, prefers_library

        if len(_choices) >= MOST_KEPT:
            _choices.clear()
        target = Target.of(operand)
        vectors = depth % 16 == 0 and cols % 16 == 0
        size = rows, cols, depth, operand.dtype.itemsize
        problem = Problem(op, *size, target, masked, vectors, splits=True, accumulators=128)
        choice = _choices[key] = prefers_library(problem)
    return choice


def _in_load(x: Tensor, features: int) -> bool:
    """Whether a normalised operand is formed where it is loaded, rather than once and stored.

    Every 128 columns of the result load it anew, at about 3 elements a picosecond of a large card's arithmetic; a pass
    of its own takes a launch and the memory's time, about 1 element a picosecond.
    """
    size = x.numel()
    return -(-features // 128) * size / 3 < size + 1.5e6


def _normalised(x: Tensor, norm: Norm) -> Tensor:
    from fastgan.kernels.batch_norm_act import batch_norm_act_fwd

    return batch_norm_act_fwd(x, norm)


def _formed(incoming: Incoming) -> Tensor:
    g, saved, activation, slope, correction = incoming
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
