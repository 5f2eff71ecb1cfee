"""The derivatives of linear_act: two functions that make up each other's gradients, and the registered ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference
from fastgan.ops.destination import Owners, owners
from fastgan.ops.linear_compute import NOBODY, OP, Gradients, backward, fits, forward
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, transformed
from fastgan.ops.shadow import NEITHER, Pair, stand_in, used


def apply(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    direct: bool,
    shades: Pair = NEITHER,
) -> Tensor:
    """Go to the kernels directly, or to the registered op where a tracer must see it.

    ``shades``: what is computed with in the place of weight and bias, to which the gradients go.
    """
    if not direct:
        return _linear_act(input, weight, bias, activation, negative_slope)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _LinearAct.apply(input, weight, bias, activation, negative_slope, True, shades)
    return forward("triton", input, *used(weight, bias, shades), activation, negative_slope)[0]


def differentiate(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    saved: Tensor | None,
    wanted: Sequence[bool],
    activation: str,
    negative_slope: float,
    direct: bool,
    shade: Tensor | None = None,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients, with a graph of their own where one is being recorded.

    ``shade``: what stands in for the weight; ``owners``: whose gradients they are.
    """
    recorded = torch.is_grad_enabled()
    if recorded and saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()  # no gradient flows into the mask: the forward graph need not live on for it
    operands = grad, input if wanted[1] else None, weight if wanted[0] else None, saved
    if not direct:
        return _placed(_linear_act_backward(*operands, activation, negative_slope, wanted), wanted)
    if recorded and not batched(*operands):
        more = shade, owners._replace(lands=False)
        return _LinearActBackward.apply(*operands, activation, negative_slope, wanted, True, *more)
    if batched(*operands):
        factor = weight if shade is None or weight is None else weight.to(grad.dtype)
        return backward("reference", *operands[:2], factor, saved, activation, negative_slope, wanted, owners)
    factor = operands[2] if shade is None or not wanted[0] else shade
    return backward("triton", *operands[:2], factor, saved, activation, negative_slope, wanted, owners)


class _LinearAct(Function):
    """y = phi(x W^T + b). Saves x, W, and the output or the pre-activation, each only for a gradient that needs it."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        negative_slope: float,
        direct: bool,
        shades: Pair = NEITHER,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        factor, column = used(weight, bias, shades)
        if direct:
            output, saved = forward("triton", input, factor, column, activation, negative_slope)
        else:
            with below_autograd():
                output = _linear_act(input, weight, bias, activation, negative_slope)
            saved = None if activation == "none" else output
        to_input, to_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if to_weight else None, factor if to_input else None, saved)
        ctx.how, ctx.shaded, ctx.owners = (activation, negative_slope, direct), factor is not weight, NOBODY
        if direct:
            ctx.owners = owners(weight, bias, shades)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        input, factor, saved = ctx.saved_tensors
        weight, shade = (ctx.owners.weight, factor) if ctx.shaded else (factor, None)
        beside: dict[str, Any] = {"shade": shade, "owners": ctx.owners}
        gradients = differentiate(grad, input, weight, saved, asked_for(ctx)[:3], *ctx.how, **beside)
        return (*gradients, None, None, None, None)


class _LinearActBackward(Function):
    """g = gy * phi'(y); gx = g W, gW = g^T x, gb = sum of g, as functions of gy, x, W and, where phi is smooth, of y.

    y comes in as an argument, so that phi'' reaches x, W and b through y's own graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        saved: Tensor | None,
        activation: str,
        negative_slope: float,
        wanted: Sequence[bool],
        direct: bool,
        shade: Tensor | None = None,
        owners: Owners = NOBODY,
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        factor = weight if shade is None or weight is None else shade
        ctx.save_for_backward(grad, input, factor, saved)
        ctx.how, ctx.shaded = (activation, negative_slope, direct), factor is not weight
        ctx.weight, ctx.owners = weight if ctx.shaded else None, owners
        if direct:
            return backward("triton", grad, input, factor, saved, activation, negative_slope, wanted, owners)
        with below_autograd():
            parts = _linear_act_backward(grad, input, weight, saved, activation, negative_slope, wanted)
        return _placed(parts, wanted)

    @staticmethod
    def backward(
        ctx: Any, to_gx: Tensor | None, to_gw: Tensor | None, to_gb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, input, factor, saved = ctx.saved_tensors
        weight, shade = (ctx.weight, factor) if ctx.shaded else (factor, None)
        activation, negative_slope, direct = ctx.how
        wants_grad, wants_input, wants_weight, wants_saved, *_ = asked_for(ctx)
        wants_saved = wants_saved and activation in act.SMOOTH
        for_grad = for_input = for_weight = for_saved = None
        if wants_grad or wants_saved:
            to_g = _gradient_of_g(grad, input, weight, shade, to_gx, to_gw, to_gb, direct)
            if to_g is not None and wants_grad:
                for_grad = act.times_derivative(to_g, saved, activation, negative_slope)
            if to_g is not None and wants_saved:
                for_saved = act.times_second_derivative(to_g * grad, saved, activation)
        if wants_input and to_gw is not None:  # g to_gW
            more: Any = (True, False, False), *ctx.how, stand_in(to_gw, grad.dtype)
            for_input = differentiate(grad, None, to_gw, saved, *more)[0]
        if wants_weight and to_gx is not None:  # g^T to_gx
            more = (False, True, False), *ctx.how, None, ctx.owners._replace(lands=True)
            for_weight = differentiate(grad, to_gx, None, saved, *more)[1]
        return for_grad, for_input, for_weight, for_saved, *(None,) * 6


def _gradient_of_g(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    shade: Tensor | None,
    to_gx: Tensor | None,
    to_gw: Tensor | None,
    to_gb: Tensor | None,
    direct: bool,
) -> Tensor | None:
    """Return to_gx W^T + x to_gW^T + to_gb, of the terms that are there, in g's dtype."""
    dtype = grad.dtype
    if batched(to_gx, to_gw, to_gb):
        terms = [F.linear(to_gx, weight.to(dtype))] if to_gx is not None and weight is not None else []
        terms += [F.linear(input, to_gw.to(dtype))] if to_gw is not None and input is not None else []
        terms += [to_gb.to(dtype).expand_as(grad)] if to_gb is not None else []
        return sum(terms[1:], terms[0]) if terms else None
    total, linear = None, ("none", 0.0, direct)
    if to_gx is not None and weight is not None:
        total, to_gb = apply(to_gx, weight, to_gb, *linear, (shade, stand_in(to_gb, dtype))), None
    if to_gw is not None and input is not None:
        shades = stand_in(to_gw, dtype), stand_in(to_gb, dtype)
        term, to_gb = apply(input, to_gw, to_gb, *linear, shades), None
        total = term if total is None else total + term
    return total if to_gb is None else to_gb.to(dtype).expand_as(grad)


def _placed(parts: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """Put the gradients that the op returned in their places, None in the others."""
    rest = iter(parts)
    gx, gw, gb = (next(rest) if want else None for want in wanted)
    return gx, gw, gb


def _compute(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    ours = not by_reference(OP, input) and fits(input, weight, bias)
    with torch.autocast(input.device.type, enabled=False):  # the caller has cast
        return forward("triton" if ours else "reference", input, weight, bias, act.check(activation), negative_slope)[0]


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    torch._check(input.shape[-1] == weight.shape[1], lambda: f"input {input.shape} does not fit weight {weight.shape}")
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    if transformed():
        return act.activate(F.linear(input, weight, bias), activation, negative_slope)
    if act.saves_pre_activation(activation, negative_slope):  # the op returns no pre-activation: let PyTorch keep it
        return F.leaky_relu(_linear_act(input, weight, bias, "none", 0.0), negative_slope)
    return _LinearAct.apply(input, weight, bias, activation, negative_slope, False)


def _compute_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    saved: Tensor | None,
    activation: str,
    negative_slope: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    backend = "reference" if by_reference(OP, grad) else "triton"
    with torch.autocast(grad.device.type, enabled=False):
        gradients = backward(backend, grad, input, weight, saved, activation, negative_slope, wanted)
    return [gradient for gradient in gradients if gradient is not None]


def _fake_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    saved: Tensor | None,
    activation: str,
    negative_slope: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    outputs = []
    if wanted[0] and weight is not None:
        outputs.append(grad.new_empty((*grad.shape[:-1], weight.shape[1])))
    if wanted[1] and input is not None:
        outputs.append(grad.new_empty((grad.shape[-1], input.shape[-1])))
    if wanted[2]:
        outputs.append(grad.new_empty((grad.shape[-1],)))
    return outputs


def _autograd_backward(*arguments: Any) -> list[Tensor]:
    gradients = _LinearActBackward.apply(*arguments, False)
    return [gradient for gradient in gradients if gradient is not None]


_linear_act = register_op(
    "linear_act(Tensor input, Tensor weight, Tensor? bias, str activation, float negative_slope) -> Tensor",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
_linear_act_backward = register_op(
    "linear_act_backward(Tensor grad, Tensor? input, Tensor? weight, Tensor? saved, str activation, "
    "float negative_slope, bool[3] wanted) -> Tensor[]",
    compute=_compute_backward,
    fake=_fake_backward,
    autograd=_autograd_backward,
)
