"""The derivatives of concat_linear_act: two functions that make up each other's gradients, and the registered ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference
from fastgan.ops.concat_linear_compute import (
    MOST,
    OP,
    Gradients,
    Part,
    backward,
    fits,
    flat,
    forward,
    leading,
    listed,
    paired,
    placed,
    plain,
    table_gradients,
)
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, transformed

How = tuple[str, float, bool]  # activation, negative slope, and whether the kernels are called directly


def apply(parts: Sequence[Part], weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    """Go to the kernels directly, or to the registered op where a tracer must see it."""
    activation, negative_slope, direct = how
    if not direct:
        return _concat_linear_act(*listed(parts), weight, bias, activation, negative_slope)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*flat(parts), weight, bias)):
        return _ConcatLinearAct.apply(weight, bias, how, *flat(parts))
    return forward(parts, weight, bias, activation, negative_slope)[0]


def _differentiate(
    grad: Tensor,
    parts: Sequence[Part],
    weight: Tensor | None,
    saved: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    how: How,
) -> Gradients:
    """Return the wanted gradients, with a graph of their own where one is being recorded."""
    activation, negative_slope, direct = how
    recorded = torch.is_grad_enabled()
    if recorded and saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()  # no gradient flows into the mask: the forward graph need not live on for it
    parts = parts if wanted[0] else ()
    weight = weight if any(wanted[2:]) else None
    if not direct:
        rest = (weight, saved, sizes, wanted, activation, negative_slope)
        return placed(_concat_linear_act_backward(grad, *listed(parts), *rest), wanted)
    if batched(grad, weight, saved, *flat(parts)):
        return backward("reference", grad, parts, weight, saved, sizes, wanted, activation, negative_slope)
    if recorded:
        return _ConcatLinearActBackward.apply(grad, weight, saved, sizes, wanted, how, *flat(parts))
    return backward("triton", grad, parts, weight, saved, sizes, wanted, activation, negative_slope)


class _ConcatLinearAct(Function):
    """y = phi(cat(parts) W^T + b). Saves what a gradient needs: for W's the parts, for a part's W, and y's mask."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, how: How, *operands: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        parts, (activation, negative_slope, direct) = paired(operands), how
        if direct:
            output, saved = forward(parts, weight, bias, activation, negative_slope)
        else:
            with below_autograd():
                output = _concat_linear_act(*listed(parts), weight, bias, activation, negative_slope)
            saved = None if activation == "none" else output
        to_weight, to_parts = ctx.needs_input_grad[0], ctx.needs_input_grad[3 : 3 + len(parts)]
        kept = [
            (values if to_weight else None, index if to_weight or to_part else None)
            for (values, index), to_part in zip(parts, to_parts, strict=True)
        ]
        ctx.save_for_backward(weight if any(to_parts) else None, saved, *flat(kept))
        ctx.sizes = [values.shape[-1] for values, _ in parts]
        ctx.heights = [values.shape[0] for values, _ in parts]
        ctx.how = how
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Gradients:
        count = len(ctx.sizes)
        if grad is None:
            return (None,) * (3 + 2 * count)
        weight, saved, *operands = ctx.saved_tensors
        parts, asked = paired(operands), asked_for(ctx)
        wanted = [*asked[:2], *asked[3 : 3 + count]]
        to_weight, to_bias, *rows = _differentiate(grad, parts, weight, saved, ctx.sizes, wanted, ctx.how)
        return to_weight, to_bias, None, *table_gradients(rows, parts, ctx.heights), *(None,) * count


class _ConcatLinearActBackward(Function):
    """g = gy * phi'(y); gW = g^T cat(parts), gb = sum of g, and g W cut into the parts' columns.

    As functions of gy, W, the parts and, where phi is smooth, of y: so that phi'' reaches the others through y's own
    graph. There are parts only where W's gradient is wanted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        weight: Tensor | None,
        saved: Tensor | None,
        sizes: Sequence[int],
        wanted: Sequence[bool],
        how: How,
        *operands: Tensor | None,
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, weight, saved, *operands)
        parts, (activation, negative_slope, direct) = paired(operands), how
        form = (activation, negative_slope)
        ctx.sizes, ctx.how = sizes, how
        if direct:
            return backward("triton", grad, parts, weight, saved, sizes, wanted, *form)
        with below_autograd():
            outputs = _concat_linear_act_backward(grad, *listed(parts), weight, saved, sizes, wanted, *form)
        return placed(outputs, wanted)

    @staticmethod
    def backward(ctx: Any, to_gw: Tensor | None, to_gb: Tensor | None, *to_rows: Tensor | None) -> Gradients:
        grad, weight, saved, *operands = ctx.saved_tensors
        parts, (activation, negative_slope, _) = paired(operands), ctx.how
        asked, count = asked_for(ctx), len(parts)
        wants_grad, wants_weight, wants_saved = *asked[:2], asked[2] and activation in act.SMOOTH
        wants_parts = asked[6 : 6 + count]
        for_grad = for_weight = for_saved = None
        for_parts: Sequence[Tensor | None] = (None,) * count
        if wants_grad or wants_saved:
            to_g = _gradient_of_g(grad, parts, weight, ctx.sizes, to_gw, to_gb, to_rows, ctx.how)
            if to_g is not None and wants_grad:
                for_grad = act.times_derivative(to_g, saved, activation, negative_slope)
            if to_g is not None and wants_saved:
                for_saved = act.times_second_derivative(to_g * grad, saved, activation)
        if any(wants_parts) and to_gw is not None:  # g to_gW, cut into columns
            wanted = (False, False, *wants_parts)
            rows = _differentiate(grad, (), to_gw, saved, ctx.sizes, wanted, ctx.how)[2:]
            for_parts = table_gradients(rows, parts, [values.shape[0] for values, _ in parts])
        if wants_weight:
            for_weight = _gradient_of_weight(grad, saved, ctx.sizes, to_rows, ctx.how)
        return for_grad, for_weight, for_saved, None, None, None, *for_parts, *(None,) * count


def _gradient_of_g(
    grad: Tensor,
    parts: Sequence[Part],
    weight: Tensor | None,
    sizes: Sequence[int],
    to_gw: Tensor | None,
    to_gb: Tensor | None,
    to_rows: Sequence[Tensor | None],
    how: How,
) -> Tensor | None:
    """Return cat(to_rows) W^T + cat(parts) to_gW^T + to_gb, of the terms that are there."""
    total, linear = None, ("none", 0.0, how[2])
    given = [(rows, None) for rows in to_rows if rows is not None]
    if given and weight is not None:
        columns = [block for block, rows in zip(weight.split(sizes, 1), to_rows, strict=True) if rows is not None]
        weight = weight if len(columns) == len(sizes) else columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        total, to_gb = apply(given, weight, to_gb, linear), None
    if to_gw is not None and parts:
        term, to_gb = apply(parts, to_gw, to_gb, linear), None
        total = term if total is None else total + term
    return total if to_gb is None else to_gb.expand_as(grad)


def _gradient_of_weight(
    grad: Tensor, saved: Tensor | None, sizes: Sequence[int], to_rows: Sequence[Tensor | None], how: How
) -> Tensor | None:
    """Return g^T cat(to_rows), zeros in the columns of rows that are not there; None where none are."""
    given = [(rows, None) for rows in to_rows if rows is not None]
    if not given:
        return None
    widths = [rows.shape[-1] for rows, _ in given]
    block = _differentiate(grad, given, None, saved, widths, [True] + [False] * (1 + len(given)), how)[0]
    if block is None or len(given) == len(sizes):
        return block
    blocks, height = iter(block.split(widths, 1)), grad.shape[-1]
    every = zip(sizes, to_rows, strict=True)
    return torch.cat([grad.new_zeros(height, k) if rows is None else next(blocks) for k, rows in every], 1)


def _compute(
    values: Sequence[Tensor], indices: Sequence[Tensor | None], weight: Tensor, bias: Tensor | None, *form: Any
) -> Tensor:
    parts = list(zip(values, indices, strict=True))
    act.check(form[0])
    with torch.autocast(weight.device.type, enabled=False):  # the caller has cast
        if fits(parts, weight, bias) and len(parts) <= MOST:
            return forward(parts, weight, bias, *form)[0]
        return plain(parts, weight, bias, *form)


def _fake(
    values: Sequence[Tensor], indices: Sequence[Tensor | None], weight: Tensor, bias: Tensor | None, *form: Any
) -> Tensor:
    return weight.new_empty((*leading((values[0], indices[0])), weight.shape[0]))


def _autograd(
    values: Sequence[Tensor], indices: Sequence[Tensor | None], weight: Tensor, bias: Tensor | None, *form: Any
) -> Tensor:
    parts = list(zip(values, indices, strict=True))
    if transformed():
        return plain(parts, weight, bias, *form)
    if act.saves_pre_activation(*form):  # the op returns no pre-activation: let PyTorch keep it
        return F.leaky_relu(_concat_linear_act(values, indices, weight, bias, "none", 0.0), form[1])
    return _ConcatLinearAct.apply(weight, bias, (*form, False), *values, *indices)


def _compute_backward(
    grad: Tensor, values: Sequence[Tensor], indices: Sequence[Tensor | None], *rest: Any
) -> list[Tensor]:
    backend = "reference" if by_reference(OP, grad) or len(values) > MOST else "triton"
    with torch.autocast(grad.device.type, enabled=False):
        gradients = backward(backend, grad, list(zip(values, indices, strict=True)), *rest)
    return [gradient for gradient in gradients if gradient is not None]


def _fake_backward(
    grad: Tensor,
    values: Sequence[Tensor],
    indices: Sequence[Tensor | None],
    weight: Tensor | None,
    saved: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    *form: Any,
) -> list[Tensor]:
    N = grad.shape[-1]
    shapes = [(N, sum(sizes)), (N,), *((*grad.shape[:-1], size) for size in sizes)]
    return [grad.new_empty(shape) for shape, want in zip(shapes, wanted, strict=True) if want]


def _autograd_backward(
    grad: Tensor,
    values: Sequence[Tensor],
    indices: Sequence[Tensor | None],
    weight: Tensor | None,
    saved: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    *form: Any,
) -> list[Tensor]:
    how = (*form, False)
    gradients = _ConcatLinearActBackward.apply(grad, weight, saved, sizes, wanted, how, *values, *indices)
    return [gradient for gradient in gradients if gradient is not None]


_concat_linear_act = register_op(
    "concat_linear_act(Tensor[] parts, Tensor?[] indices, Tensor weight, Tensor? bias, str activation, "
    "float negative_slope) -> Tensor",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
_concat_linear_act_backward = register_op(
    "concat_linear_act_backward(Tensor grad, Tensor[] parts, Tensor?[] indices, Tensor? weight, Tensor? saved, "
    "SymInt[] sizes, bool[] wanted, str activation, float negative_slope) -> Tensor[]",
    compute=_compute_backward,
    fake=_fake_backward,
    autograd=_autograd_backward,
)
