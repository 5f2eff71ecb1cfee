"""gained_act: StyleGAN's bias, activation, gain and clamp as one op, differentiable as often as asked."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError, unknown
from fastgan.ops.backend import KERNEL_DTYPES, by_reference, register
from fastgan.ops.gained_act_formulas import SMOOTH, Form, activated, bent, sloped
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, traced, transformed

OP = register("gained_act")


class Defaults(NamedTuple):
    """What an activation has where nothing is said: a slope, and a gain that keeps the second moment."""

    def_alpha: float
    def_gain: float


ACTIVATIONS = {
    "linear": Defaults(0.0, 1.0),
    "relu": Defaults(0.0, math.sqrt(2)),
    "lrelu": Defaults(0.2, math.sqrt(2)),
    "tanh": Defaults(0.0, 1.0),
    "sigmoid": Defaults(0.0, 1.0),
    "elu": Defaults(0.0, 1.0),
    "selu": Defaults(0.0, 1.0),
    "softplus": Defaults(0.0, 1.0),
    "swish": Defaults(0.0, math.sqrt(2)),
}


def gained_act(
    input: Tensor,
    bias: Tensor | None = None,
    dim: int = 1,
    activation: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Return clamp(gain * activation(input + bias), -clamp, clamp): one launch, and one for each of its derivatives.

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", whose layers end with it.

    Args:
        input: any shape and strides, best contiguous or channels_last; bf16, fp16 or fp32, or any other floating dtype
            by plain PyTorch.
        bias: (input.shape[dim]), floating; None: none.
        dim: the dimension that the bias belongs to; of no account without one.
        activation: ``linear``, ``relu``, ``lrelu``, ``tanh``, ``sigmoid``, ``elu``, ``selu``, ``softplus`` or
            ``swish``.
        alpha: the slope of ``lrelu`` where it is negative, 0.2 by default; the others have none.
        gain: a factor behind the activation, by default sqrt(2) for ``relu``, ``lrelu`` and ``swish``, else 1.
        clamp: the largest magnitude of the result, at least 0; None: none.

    Returns:
        The input's shape and dtype, channels innermost where the input's are; formed in fp32 and rounded once. Where
        there is nothing to do, the input itself.

    Gradient order: any, with respect to input and bias. The derivative is 0 where the result reaches the clamp, at the
    clamp itself too, and ``lrelu``'s is ``alpha`` at 0. Kept for it: the result; of ``swish`` input and bias. What goes
    by plain PyTorch is an ``lrelu`` of negative slope and a gain of 0.

    Raises:
        UserError: for an unknown activation, a bias that does not fit, and a negative clamp.
    """
    form = _form(input, bias, dim, activation, alpha, gain, clamp)
    if bias is None and form[1:] == ("linear", form.alpha, 1.0, -1.0):
        return input
    if not _fits(input, bias, form) or transformed():
        return activated(input, bias, form)
    if traced(input, bias):
        result: Tensor = _gained_act(input, bias, *form)
        return result
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        return _GainedAct.apply(input, bias, form, True)
    return _launched(input, bias, form)


def _form(
    input: Tensor, bias: Tensor | None, dim: int, activation: str, alpha: float | None, gain: float | None,
    clamp: float | None,
) -> Form:  # fmt: skip
    """Fill in the defaults; raise a ``UserError`` for what cannot be."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if clamp is not None and not clamp >= 0:
        raise UserError(f"clamp is the largest magnitude of a result, at least 0, not {clamp}: None for no clamp")
    if not input.is_floating_point():
        raise UserError(f"an activation needs floating numbers, not {input.dtype}: cast the input first")
    if bias is None:
        dim = min(1, max(input.dim() - 1, 0))
    elif not -input.dim() <= dim < input.dim() or tuple(bias.shape) != (input.shape[dim],):
        raise UserError(f"bias {tuple(bias.shape)} does not fit dimension {dim} of an input {tuple(input.shape)}")
    usual = ACTIVATIONS[activation]
    alpha, gain = (float(default if it is None else it) for it, default in zip((alpha, gain), usual, strict=True))
    return Form(dim % max(input.dim(), 1), activation, alpha, gain, -1.0 if clamp is None else float(clamp))


def _fits(input: Tensor, bias: Tensor | None, form: Form) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not."""
    return (
        not by_reference(OP, input)
        and input.layout == torch.strided
        and input.dim() > 0
        and form.gain != 0
        and not (form.act == "lrelu" and form.alpha < 0)
        and (bias is None or (bias.device == input.device and bias.dtype in KERNEL_DTYPES))
    )


def _folded(tensor: Tensor, dim: int) -> Tensor:
    """Return [A, C, B], C being the dimension; a copy where the strides of the others do not join."""
    shape = tensor.shape
    return tensor.reshape(math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))


def _last(folded: Tensor) -> bool:
    """Whether channels lie innermost, in what is made of [A, C, B] too."""
    return folded.shape[2] == 1 or (folded.shape[1] > 1 and folded.stride(1) == 1)


def _room(like: Tensor, dim: int) -> Tensor:
    """Return what a kernel would return for such an operand, of any content: no view, people write into it."""
    places = list(range(like.dim()))
    if _last(_folded(like, dim)):
        places.append(places.pop(dim))
    strides, step = [0] * like.dim(), 1
    for at in reversed(places):
        strides[at] = step
        step *= max(like.shape[at], 1)
    return torch.empty_strided(like.shape, strides, dtype=like.dtype, device=like.device)


def _launched(input: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    from fastgan.kernels import gained_act as kernels

    x, result = _folded(input, form.dim), _room(input, form.dim)
    kernels.gained_act(x, _column(bias), *form[1:], _last(x), _folded(result, form.dim))
    return result


def _column(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _slope(grad: Tensor, saved: Tensor | None, bias: Tensor | None, form: Form, direct: bool) -> Tensor:
    """Return what becomes of a gradient, with a graph of its own where one is being recorded."""
    if not direct:
        gradient: Tensor = _gained_act_slope(grad, saved, bias, *form)
        return gradient
    if batched(grad):
        return sloped(grad, saved, bias, form)
    if torch.is_grad_enabled():
        return _Slope.apply(grad, saved, bias, form, True)
    return _launched_slope(grad, saved, bias, form)


def _launched_slope(grad: Tensor, saved: Tensor | None, bias: Tensor | None, form: Form) -> Tensor:
    from fastgan.kernels import gained_act as kernels

    like = grad if saved is None else saved
    kept = None if saved is None else _folded(saved, form.dim)
    gradient, last = _room(like, form.dim), _last(_folded(like, form.dim))
    out = _folded(gradient, form.dim)
    kernels.gained_act_slope(_folded(grad, form.dim), kept, _column(bias), *form[1:], last, out)
    return gradient


def _bend(grad: Tensor, other: Tensor, saved: Tensor, bias: Tensor | None, form: Form, direct: bool) -> Tensor:
    """Return the gradient of what was saved; where a graph of it is asked for, by plain PyTorch."""
    if not direct:
        gradient: Tensor = _gained_act_bend(grad, other, saved, bias, *form)
        return gradient
    if torch.is_grad_enabled() or batched(grad, other):
        return bent(grad, other, saved, bias, form)
    return _launched_bend(grad, other, saved, bias, form)


def _launched_bend(grad: Tensor, other: Tensor, saved: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    from fastgan.kernels import gained_act as kernels

    gradient = _room(saved, form.dim)
    g, v, kept, out = (_folded(tensor, form.dim) for tensor in (grad, other, saved, gradient))
    kernels.gained_act_bend(g, v, kept, _column(bias), *form[1:], _last(kept), out)
    return gradient


def _summed(gradient: Tensor, bias: Tensor, dim: int) -> Tensor:
    """Return a bias's gradient: that of its input, summed over the other dimensions."""
    others = [at for at in range(gradient.dim()) if at != dim]
    return gradient.sum(others, dtype=bias.dtype) if others else gradient.to(bias.dtype)


class _GainedAct(Function):
    """The result. Saves it, or input and bias, or nothing."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, form: Form, direct: bool) -> Tensor:
        ctx.set_materialize_grads(False)
        if direct:
            result = _launched(input, bias, form)
        else:
            with below_autograd():
                result = _gained_act(input, bias, *form)
        keeps = form.keeps()
        kept = {"input": input, "output": result, "nothing": None}[keeps]
        ctx.save_for_backward(kept, bias if keeps == "input" else None)
        ctx.how, ctx.bias = (form, direct), None if bias is None else bias.detach()[:0]
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        to_input, to_bias, *_ = asked_for(ctx)
        if grad is None or not (to_input or to_bias):
            return (None,) * 4
        form, direct = ctx.how
        saved, bias = ctx.saved_tensors
        gradient = _slope(grad, saved, bias, form, direct)
        return gradient if to_input else None, _summed(gradient, ctx.bias, form.dim) if to_bias else None, None, None


class _Slope(Function):
    """The gradient of the input as a function of the result's gradient and of what was saved."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, saved: Tensor | None, bias: Tensor | None, form: Form, direct: bool) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad if form.act in SMOOTH else None, saved, bias)
        ctx.how = form, direct
        if direct:
            return _launched_slope(grad, saved, bias, form)
        with below_autograd():
            gradient: Tensor = _gained_act_slope(grad, saved, bias, *form)
        return gradient

    @staticmethod
    def backward(ctx: Any, to_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        to_grad, to_saved, to_bias, *_ = asked_for(ctx)
        if to_gradient is None:
            return (None,) * 5
        grad, saved, bias = ctx.saved_tensors
        form, direct = ctx.how
        for_grad = _slope(to_gradient, saved, bias, form, direct) if to_grad else None
        if grad is None or not (to_saved or to_bias):
            return for_grad, *(None,) * 4
        for_saved = _bend(grad, to_gradient, saved, bias, form, direct)
        for_bias = _summed(for_saved, bias, form.dim) if to_bias else None
        return for_grad, for_saved if to_saved else None, for_bias, None, None


def _compute(input: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    form = Form(*how)
    if _fits(input, bias, form):
        return _launched(input, bias, form)
    return _room(input, form.dim).copy_(activated(input, bias, form))


def _compute_slope(grad: Tensor, saved: Tensor | None, bias: Tensor | None, *how: Any) -> Tensor:
    form = Form(*how)
    if _fits(grad, bias, form):
        return _launched_slope(grad, saved, bias, form)
    return _room(grad if saved is None else saved, form.dim).copy_(sloped(grad, saved, bias, form))


def _compute_bend(grad: Tensor, other: Tensor, saved: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    form = Form(*how)
    if _fits(grad, bias, form):
        return _launched_bend(grad, other, saved, bias, form)
    return _room(saved, form.dim).copy_(bent(grad, other, saved, bias, form))


def _autograd(input: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    form = Form(*how)
    if transformed():
        return activated(input, bias, form)
    result: Tensor = _GainedAct.apply(input, bias, form, False)
    return result


def _autograd_slope(grad: Tensor, saved: Tensor | None, bias: Tensor | None, *how: Any) -> Tensor:
    form = Form(*how)
    if transformed():
        return sloped(grad, saved, bias, form)
    gradient: Tensor = _Slope.apply(grad, saved, bias, form, False)
    return gradient


def _autograd_bend(grad: Tensor, other: Tensor, saved: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    if torch.is_grad_enabled() or transformed():
        return bent(grad, other, saved, bias, Form(*how))
    with below_autograd():
        gradient: Tensor = _gained_act_bend(grad, other, saved, bias, *how)
    return gradient


_HOW = "int dim, str act, float alpha, float gain, float clamp"
_gained_act = register_op(
    f"gained_act(Tensor input, Tensor? bias, {_HOW}) -> Tensor",
    compute=_compute,
    fake=lambda like, bias, dim, *how: _room(like, dim),
    autograd=_autograd,
)
_gained_act_slope = register_op(  # grad h; saved is the output, or the input with its bias, or nothing
    f"gained_act_slope(Tensor grad, Tensor? saved, Tensor? bias, {_HOW}) -> Tensor",
    compute=_compute_slope,
    fake=lambda grad, saved, bias, dim, *how: _room(grad if saved is None else saved, dim),
    autograd=_autograd_slope,
)
_gained_act_bend = register_op(  # grad other h'
    f"gained_act_bend(Tensor grad, Tensor other, Tensor saved, Tensor? bias, {_HOW}) -> Tensor",
    compute=_compute_bend,
    fake=lambda grad, other, saved, bias, dim, *how: _room(saved, dim),
    autograd=_autograd_bend,
)
