"""The derivatives of norms with their activation, by the kernels or in plain arithmetic, and the registered ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from fastgan.ops import activation as act
from fastgan.ops import peers
from fastgan.ops.backend import by_reference, only_ours
from fastgan.ops.batch_norm_act_compute import (
    OP,
    Form,
    Gradients,
    Running,
    backward,
    fits,
    forward,
    layout,
    lies_as_rows,
    plain_backward,
    plain_forward,
)
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, traced, transformed


def by_kernels(
    op: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, running: Running
) -> Tensor | None:
    """Return the output by the kernels or the registered ops; None where PyTorch is to compute it, or to refuse it."""
    if by_reference(op, input):
        return None
    act.check(form.activation)
    if transformed() or not fits(input, weight, bias, form, *running[:2]):
        return None
    if not (only_ours() or lies_as_rows(input)):
        return None
    direct = not traced(input, weight, bias, *running[:2])
    if form.training and not form.instance and not direct and peers.current() is not None:
        return None  # the registered ops know of no others
    return apply(input, weight, bias, form, running, direct)


def apply(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, running: Running, direct: bool
) -> Tensor:
    """Go to the kernels directly, or to the registered ops where a tracer must see them."""
    if not direct:
        given = (None, None) if form.training else (running.mean, running.var)
        output, mean, var = _batch_norm_act(input, weight, bias, *given, *form[1:])
        if form.training and running.mean is not None:
            rows = input.numel() // input.shape[1]
            if form.instance:
                mean, var, rows = mean.mean(0, keepdim=True), var.mean(0, keepdim=True), rows // input.shape[0]
            _batch_norm_track(running.mean, running.var, mean, var, running.tracked, running.momentum, rows)
        return output
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _BatchNormAct.apply(input, weight, bias, form, running, True)
    return forward(input, weight, bias, form, running, keep=False)[0]


class _BatchNormAct(Function):
    """phi(s (input - mean) + bias), s = weight / sqrt(var + eps). Saves all of these but what it returns.

    Seen by a tracer it also returns mean and var, of which no gradient is taken.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, running: Running, direct: bool
    ) -> Any:
        ctx.set_materialize_grads(False)
        if direct:
            output, mean, var = forward(input, weight, bias, form, running, keep=True)
        else:
            with below_autograd():
                output, mean, var = _batch_norm_act(input, weight, bias, *running[:2], *form[1:])
            ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(input, weight, bias, mean, var)
        ctx.how, ctx.peers = (form, direct), peers.current()
        return output if direct else (output, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        form, direct = ctx.how
        input, weight, bias, mean, var = ctx.saved_tensors
        wanted = asked_for(ctx)[:3]
        if torch.is_grad_enabled() or batched(grad) or direct:
            form_them = plain_backward if torch.is_grad_enabled() or batched(grad) else backward
            with peers.together(ctx.peers):
                gradients = form_them(grad, input, weight, bias, mean, var, form, wanted)
        else:
            parts = _batch_norm_act_backward(grad, input, weight, bias, mean, var, *form[:4], wanted, form.instance)
            gradients = _placed(parts, wanted)
        return (*gradients, None, None, None)


def _placed(parts: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """Put the gradients that the op returned in their places, None in the others."""
    rest = iter(parts)
    gx, gw, gb = (next(rest) if want else None for want in wanted)
    return gx, gw, gb


def _compute(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    form = Form(mean is None, *how)
    act.check(form.activation)
    if not by_reference(OP, input) and fits(input, weight, bias, form, mean, var):
        return forward(input, weight, bias, form, Running(mean, var), keep=True)
    with torch.autocast(input.device.type, enabled=False):
        output, mean, var = plain_forward(input, weight, bias, mean, var, form)
    return output.contiguous(memory_format=layout(input)), mean, var


def _fake(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    groups = input.shape[0] if Form(mean is None, *how).instance and mean is None else 1
    mean, var = (input.new_empty((groups, input.shape[1]), dtype=dtype) for _ in range(2))
    return torch.empty_like(input, memory_format=layout(input)), mean, var


def _autograd(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    form = Form(mean is None, *how)
    if transformed():
        return plain_forward(input, weight, bias, mean, var, form)
    return _BatchNormAct.apply(input, weight, bias, form, Running(mean, var), False)


def _compute_backward(grad: Tensor, input: Tensor, *rest: Any) -> list[Tensor]:
    weight, bias, mean, var, training, eps, activation, slope, wanted, *instance = rest
    form = Form(training, eps, act.check(activation), slope, *instance)
    if not by_reference(OP, input):
        gradients = backward(grad, input, weight, bias, mean, var, form, wanted)
    else:
        with torch.autocast(input.device.type, enabled=False):
            gx, gw, gb = plain_backward(grad, input, weight, bias, mean, var, form, wanted)
        gradients = None if gx is None else gx.contiguous(memory_format=layout(input)), gw, gb
    return [gradient for gradient in gradients if gradient is not None]


def _fake_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: Any
) -> list[Tensor]:
    wanted = rest[4]
    outputs = [torch.empty_like(input, memory_format=layout(input))] if wanted[0] else []
    vectors = (t for t, want in zip((weight, bias), wanted[1:], strict=True) if want and t is not None)
    return outputs + [torch.empty_like(t, memory_format=torch.contiguous_format) for t in vectors]


def _autograd_backward(*arguments: Any) -> list[Tensor]:
    grad, input, weight, bias, mean, var, training, eps, activation, slope, wanted, *instance = arguments
    followed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[:4])
    if followed or transformed():
        form = Form(training, eps, activation, slope, *instance)
        gradients = plain_backward(grad, input, weight, bias, mean, var, form, wanted)
        return [gradient for gradient in gradients if gradient is not None]
    with below_autograd():
        return _batch_norm_act_backward(*arguments)


def _compute_track(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, tracked: Tensor | None, momentum: float,
    rows: int,
) -> None:  # fmt: skip
    """Move the running statistics towards the batch's, the variance by its unbiased estimate."""
    step = momentum if tracked is None else (1 / (tracked + 1)).to(mean.dtype)
    for running, batch in ((running_mean, mean), (running_var, var * (rows / (rows - 1)))):
        running.copy_(torch.lerp(running.to(batch.dtype), batch[0], step))


def _autograd_track(running_mean: Tensor, running_var: Tensor, *rest: Any) -> None:
    with below_autograd():
        _batch_norm_track(running_mean, running_var, *rest)
    increment_version((running_mean, running_var))  # which nothing below a dispatch mode would do


_FORM = "float eps, str activation, float negative_slope"
_batch_norm_act = register_op(  # by the statistics that are given, else by the batch's; returns those it went by too
    f"batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, {_FORM}, "
    "bool instance=False) -> (Tensor, Tensor, Tensor)",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
_batch_norm_act_backward = register_op(
    "batch_norm_act_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
    f"bool training, {_FORM}, bool[3] wanted, bool instance=False) -> Tensor[]",
    compute=_compute_backward,
    fake=_fake_backward,
    autograd=_autograd_backward,
)
_batch_norm_track = register_op(
    "batch_norm_track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, Tensor? tracked, "
    "float momentum, SymInt rows) -> ()",
    compute=_compute_track,
    fake=lambda *_: None,
    autograd=_autograd_track,
)
