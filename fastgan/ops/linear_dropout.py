"""linear_act with dropout in its epilogue: the mask is computed again in backward, from a seed and an offset."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops import dropout as drop
from fastgan.ops.destination import owners
from fastgan.ops.linear_autograd import differentiate
from fastgan.ops.linear_compute import product
from fastgan.ops.registration import asked_for, batched
from fastgan.ops.shadow import NEITHER, Pair, used


def apply_with_dropout(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rng: Tensor,
    activation: str,
    negative_slope: float,
    p: float,
    first: bool,
    shades: Pair = NEITHER,
) -> Tensor:
    """Go to the kernels; record a graph where one is wanted. ``shades``: stand in for weight and bias."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _LinearDropout.apply(input, weight, bias, rng, activation, negative_slope, p, first, shades)
    weight, bias = used(weight, bias, shades)
    return _forward(input, weight, bias, rng, activation, negative_slope, p, first)[0]


class _LinearDropout(Function):
    """y = drop(phi(x W^T + b)), or phi(drop(.)). Saves x, W, the seed, and the output or the pre-activation."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rng: Tensor,
        activation: str,
        negative_slope: float,
        p: float,
        first: bool,
        shades: Pair,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        factor, column = used(weight, bias, shades)
        output, saved = _forward(input, factor, column, rng, activation, negative_slope, p, first)
        to_input, to_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if to_weight else None, factor if to_input else None, saved, rng)
        ctx.how, ctx.shaded = (activation, negative_slope, p, first), factor is not weight
        ctx.owners = owners(weight, bias, shades)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        input, factor, saved, rng = ctx.saved_tensors
        weight, shade = (ctx.owners.weight, factor) if ctx.shaded else (factor, None)
        g = through(grad, saved, rng, *ctx.how)
        gradients = differentiate(g, input, weight, None, asked_for(ctx)[:3], "none", 0.0, True, shade, ctx.owners)
        return (*gradients, *(None,) * 6)


def through(
    grad: Tensor, saved: Tensor | None, rng: Tensor, activation: str, negative_slope: float, p: float, first: bool
) -> Tensor:
    """Return the gradient before the activation and its dropout: one pass, with a graph of its own where wanted."""
    if batched(grad):
        return _plainly(grad, saved, rng, activation, negative_slope, p, first)
    if not torch.is_grad_enabled():
        return _formed(grad, saved, rng, activation, negative_slope, p, first)
    if saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()  # no gradient flows into the mask
    return _Through.apply(grad, saved, rng, activation, negative_slope, p, first)


class _Through(Function):
    """g = gy * d y / d v, as a function of gy and, where phi is smooth, of y."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        saved: Tensor | None,
        rng: Tensor,
        activation: str,
        negative_slope: float,
        p: float,
        first: bool,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad if activation in act.SMOOTH else None, saved, rng)
        ctx.how = (activation, negative_slope, p, first)
        return _formed(grad, saved, rng, *ctx.how)

    @staticmethod
    def backward(ctx: Any, to_g: Tensor | None) -> tuple[Tensor | None, ...]:
        if to_g is None:
            return (None,) * 7
        grad, saved, rng = ctx.saved_tensors
        wants_grad, wants_saved, *_ = asked_for(ctx)
        for_grad = through(to_g, saved, rng, *ctx.how) if wants_grad else None
        for_saved = _bend(to_g * grad, saved, rng, *ctx.how) if wants_saved and grad is not None else None
        return for_grad, for_saved, None, None, None, None, None


def _bend(
    product: Tensor, saved: Tensor, rng: Tensor, activation: str, negative_slope: float, p: float, first: bool
) -> Tensor:
    """Return product * d (d y / d v) / d y, in plain PyTorch: only smooth activations have it."""
    if first:
        return drop.dropped(act.times_second_derivative(product, saved, activation), rng, p)
    kept = drop.dropped(act.times_second_derivative(product, saved * (1 - p), activation), rng, p)
    return kept * (1 - p)


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rng: Tensor,
    activation: str,
    negative_slope: float,
    p: float,
    first: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the output, and what its derivative is taken from."""
    from fastgan.kernels.linear import Dropout

    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    keeps_pre = act.saves_pre_activation(activation, negative_slope)
    dropout = Dropout(rng, drop.threshold(p), drop.scale(p), first)
    flat, pre = product(rows, weight, bias, activation, negative_slope, keeps_pre, dropout=dropout)
    output = flat.resize_((*input.shape[:-1], weight.shape[0]))  # a view could not be overwritten by who reads it
    return output, None if activation == "none" else output if pre is None else pre.view(output.shape)


def _plainly(
    grad: Tensor, saved: Tensor | None, rng: Tensor, activation: str, negative_slope: float, p: float, first: bool
) -> Tensor:
    if first:
        return drop.dropped(act.times_derivative(grad, saved, activation, negative_slope), rng, p)
    saved = saved if saved is None else saved * (1 - p)
    return act.times_derivative(drop.dropped(grad, rng, p), saved, activation, negative_slope)


def _formed(
    grad: Tensor, saved: Tensor | None, rng: Tensor, activation: str, negative_slope: float, p: float, first: bool
) -> Tensor:
    """Return g, by one elementwise kernel."""
    from fastgan.kernels import bias_act as kernels

    flat = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
    mask = None if saved is None else saved.reshape(flat.shape).contiguous()
    drawn: dict[str, Any] = {"rng": rng, "threshold": drop.threshold(p), "scale": drop.scale(p), "dropout_first": first}
    g, _ = kernels.bias_act_bwd(flat, mask, activation, negative_slope, **drawn)
    return g.view(grad.shape)
