"""The derivatives of conv_act: two functions that make up each other's gradients, and the registered ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops import conv_tracing as tracing
from fastgan.ops.conv_compute import NOTHING
from fastgan.ops.conv_form import Form
from fastgan.ops.conv_tracing import FORM, backward, forward, heard, plain_backward, told
from fastgan.ops.destination import Owners, owners
from fastgan.ops.linear_compute import NOBODY, Gradients
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, transformed
from fastgan.ops.shadow import NEITHER, Pair, stand_in, used


def apply(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    activation: str,
    negative_slope: float,
    direct: bool,
    before: tuple[str, float] = NOTHING,
    shades: Pair = NEITHER,
) -> Tensor:
    """Go to the kernels directly, or to the registered op where a tracer must see it.

    ``before``: an activation of the input, which is formed where the kernels load it; a compiler sees PyTorch's own.
    ``shades``: what is computed with in the place of weight and bias, to which the gradients go.
    """
    if act.saves_pre_activation(activation, negative_slope):
        return F.leaky_relu(apply(input, weight, bias, form, "none", 0.0, direct, before, shades), negative_slope)
    if not direct:
        return _conv_act(act.activate(input, *before), weight, bias, *told(form), activation, negative_slope)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _ConvAct.apply(input, weight, bias, form, activation, negative_slope, before, True, shades)
    return forward(input, *used(weight, bias, shades), form, activation, negative_slope, before, weight)


def differentiate(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    saved: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[bool],
    form: Form,
    activation: str,
    negative_slope: float,
    direct: bool,
    shade: Tensor | None = None,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients, with a graph of their own where one is being recorded.

    ``input`` of ``size`` is looked at for the weight's gradient only; ``weight`` has its shape looked at in any case.
    ``shade``: what stands in for the weight; ``owners``: whose gradients they are.
    """
    recorded = torch.is_grad_enabled()
    if recorded and saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()  # no gradient flows into the mask: the forward graph need not live on for it
    operands = grad, input if wanted[1] else None, weight if wanted[0] else weight.detach(), saved
    how = form, activation, negative_slope
    if not direct:
        parts = _conv_act_backward(*operands, size, *told(form), activation, negative_slope, wanted)
        return _placed(parts, wanted)
    if batched(*operands):
        factor = operands[2] if shade is None else operands[2].to(grad.dtype)
        return plain_backward(*operands[:2], factor, saved, size, wanted, form, activation, negative_slope, owners)
    if recorded:
        return _ConvActBackward.apply(*operands, size, wanted, *how, True, shade, owners._replace(lands=False))
    factor = weight if shade is None else shade
    return backward(grad, operands[1], factor, saved, size, wanted, form, activation, negative_slope, NOTHING, owners)


class _ConvAct(Function):
    """y = phi(conv(psi(x), W) + b). Saves W, the output, and x where the gradient of W or psi needs it."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        activation: str,
        negative_slope: float,
        before: tuple[str, float],
        direct: bool,
        shades: Pair = NEITHER,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        factor, column = used(weight, bias, shades)
        if direct:
            output = forward(input, factor, column, form, activation, negative_slope, before, weight)
        else:
            with below_autograd():
                output = _conv_act(input, weight, bias, *told(form), activation, negative_slope)
        kept = ctx.needs_input_grad[1] or (before != NOTHING and ctx.needs_input_grad[0])
        ctx.save_for_backward(input if kept else None, factor, None if activation == "none" else output)
        ctx.size, ctx.how = input.shape, (form, activation, negative_slope, before, direct)
        ctx.shaded, ctx.owners = factor is not weight, NOBODY
        if direct:
            ctx.owners = owners(weight, bias, shades)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        input, factor, saved = ctx.saved_tensors
        weight, shade = (ctx.owners.weight, factor) if ctx.shaded else (factor, None)
        form, activation, negative_slope, before, direct = ctx.how
        rest = saved, ctx.size, asked_for(ctx)[:3], form, activation, negative_slope
        if before != NOTHING and not torch.is_grad_enabled() and not batched(grad):
            return (*backward(grad, input, factor, *rest, before, ctx.owners), *(None,) * 6)
        u = input if input is None or before == NOTHING else act.activate(input, *before)
        gx, gw, gb = differentiate(grad, u, weight, *rest, direct, shade, ctx.owners)
        if gx is not None and before != NOTHING:
            gx = act.times_derivative(gx, u if before[0] in act.SMOOTH else input, *before)
        return gx, gw, gb, *(None,) * 6


class _ConvActBackward(Function):
    """g = gy * phi'(y), and the gradients of x, W and b, as functions of gy, x, W and, where phi is smooth, of y.

    y comes in as an argument, so that phi'' reaches x, W and b through y's own graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor,
        saved: Tensor | None,
        size: Sequence[int],
        wanted: Sequence[bool],
        form: Form,
        activation: str,
        negative_slope: float,
        direct: bool,
        shade: Tensor | None = None,
        owners: Owners = NOBODY,
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        factor = weight if shade is None else shade
        ctx.save_for_backward(grad, input, factor, saved)
        ctx.size, ctx.how = size, (form, activation, negative_slope, direct)
        ctx.weight, ctx.owners = None if shade is None else weight, owners
        if direct:
            how = form, activation, negative_slope
            return backward(grad, input, factor, saved, size, wanted, *how, owners=owners)
        with below_autograd():
            parts = _conv_act_backward(
                grad, input, weight, saved, size, *told(form), activation, negative_slope, wanted
            )
        return _placed(parts, wanted)

    @staticmethod
    def backward(
        ctx: Any, to_gx: Tensor | None, to_gw: Tensor | None, to_gb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, input, factor, saved = ctx.saved_tensors
        weight, shade = (factor, None) if ctx.weight is None else (ctx.weight, factor)
        form, activation, negative_slope, direct = ctx.how
        wants_grad, wants_input, wants_weight, wants_saved, *_ = asked_for(ctx)
        wants_saved = wants_saved and activation in act.SMOOTH
        for_grad = for_input = for_weight = for_saved = None
        if wants_grad or wants_saved:
            to_g = _gradient_of_g(grad, input, weight, shade, to_gx, to_gw, to_gb, form, direct)
            if to_g is not None and wants_grad:
                for_grad = act.times_derivative(to_g, saved, activation, negative_slope)
            if to_g is not None and wants_saved:
                for_saved = act.times_second_derivative(to_g * grad, saved, activation)
        if wants_input and to_gw is not None:  # the input's gradient, to_gw being the weights
            more = ctx.size, (True, False, False), *ctx.how, stand_in(to_gw, grad.dtype)
            for_input = differentiate(grad, None, to_gw, saved, *more)[0]
        if wants_weight and to_gx is not None:  # the weight's gradient, to_gx being the input
            more = ctx.size, (False, True, False), *ctx.how, shade, ctx.owners._replace(lands=True)
            for_weight = differentiate(grad, to_gx, weight, saved, *more)[1]
        return for_grad, for_input, for_weight, for_saved, *(None,) * 8


def _gradient_of_g(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    shade: Tensor | None,
    to_gx: Tensor | None,
    to_gw: Tensor | None,
    to_gb: Tensor | None,
    form: Form,
    direct: bool,
) -> Tensor | None:
    """Return conv(to_gx, W) + conv(x, to_gW) + to_gb, of the terms that are there, in g's dtype."""
    dtype, total = grad.dtype, None
    for x, filters in ((to_gx, weight), (input, to_gw)):
        if x is None or filters is None:
            continue
        if batched(to_gx, to_gw, to_gb):
            term = form.plain(x, filters.to(dtype), None)
        else:
            factor = shade if shade is not None and filters is weight else stand_in(filters, dtype)
            how = form, "none", 0.0, direct, NOTHING, (factor, stand_in(to_gb, dtype))
            term, to_gb = apply(x, filters, to_gb, *how), None
        total = term if total is None else total + term
    if to_gb is None:
        return total
    column = to_gb.to(dtype)[:, None, None].expand_as(grad)
    return column if total is None else total + column


def _placed(parts: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """Put the gradients that the op returned in their places, None in the others."""
    rest = iter(parts)
    gx, gw, gb = (next(rest) if want else None for want in wanted)
    return gx, gw, gb


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
    *form, activation, negative_slope = more
    how = heard(*form)
    if transformed():
        return act.activate(how.plain(input, weight, bias), activation, negative_slope)
    if act.saves_pre_activation(activation, negative_slope):  # the op returns no pre-activation: let PyTorch keep it
        return F.leaky_relu(_conv_act(input, weight, bias, *form, "none", 0.0), negative_slope)
    return _ConvAct.apply(input, weight, bias, how, activation, negative_slope, NOTHING, False)


def _autograd_backward(
    grad: Tensor, input: Tensor | None, weight: Tensor, saved: Tensor | None, size: Sequence[int], *more: Any
) -> list[Tensor]:
    *form, activation, negative_slope, wanted = more
    how = size, wanted, heard(*form), activation, negative_slope, False
    gradients = _ConvActBackward.apply(grad, input, weight, saved, *how)
    return [gradient for gradient in gradients if gradient is not None]


_conv_act = register_op(
    f"conv_act(Tensor input, Tensor weight, Tensor? bias, {FORM}, str activation, float negative_slope) -> Tensor",
    compute=tracing.compute,
    fake=tracing.fake,
    autograd=_autograd,
)
_conv_act_backward = register_op(
    f"conv_act_backward(Tensor grad, Tensor? input, Tensor weight, Tensor? saved, SymInt[] size, {FORM}, "
    "str activation, float negative_slope, bool[3] wanted) -> Tensor[]",
    compute=tracing.compute_backward,
    fake=tracing.fake_backward,
    autograd=_autograd_backward,
)
