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
from fastgan.ops.destination import Owners, owners
from fastgan.ops.linear_compute import NOBODY
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, transformed
from fastgan.ops.shadow import NEITHER, Pair, stand_in, used

How = tuple[str, float, bool]  # activation, negative slope, and whether the kernels are called directly


def apply(parts: Sequence[Part], weight: Tensor, bias: Tensor | None, how: How, shades: Pair = NEITHER) -> Tensor:
    """Go to the kernels directly, or to the registered op where a tracer must see it.

    ``shades``: what is computed with in the place of weight and bias, to which the gradients go.
    """
    activation, negative_slope, direct = how
    if not direct:
        return _concat_linear_act(*listed(parts), weight, bias, activation, negative_slope)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*flat(parts), weight, bias)):
        return _ConcatLinearAct.apply(weight, bias, how, shades, *flat(parts))
    return forward(parts, *used(weight, bias, shades), activation, negative_slope)[0]


def _differentiate(
    grad: Tensor,
    parts: Sequence[Part],
    weight: Tensor | None,
    saved: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    how: How,
    shade: Tensor | None = None,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients, with a graph of their own where one is being recorded.

    ``shade``: what stands in for the weight; ``owners``: whose gradients they are.
    """
    activation, negative_slope, direct = how
    recorded = torch.is_grad_enabled()
    if recorded and saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()  # no gradient flows into the mask: the forward graph need not live on for it
    parts = parts if wanted[0] else ()
    weight = weight if any(wanted[2:]) else None
    if not direct:
        rest = (weight, saved, sizes, wanted, activation, negative_slope)
        return placed(_concat_linear_act_backward(grad, *listed(parts), *rest), wanted)
    how_to = saved, sizes, wanted, activation, negative_slope, owners
    if batched(grad, weight, saved, *flat(parts)):
        factor = weight if shade is None or weight is None else weight.to(grad.dtype)
        return backward("reference", grad, parts, factor, *how_to)
    if recorded:
        more = how, shade, owners._replace(lands=False)
        return _ConcatLinearActBackward.apply(grad, weight, saved, sizes, wanted, *more, *flat(parts))
    return backward("triton", grad, parts, weight if shade is None or weight is None else shade, *how_to)


class _ConcatLinearAct(Function):
    """y = phi(cat(parts) W^T + b). Saves what a gradient needs: for W's the parts, for a part's W, and y's mask."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, how: How, shades: Pair, *operands: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        parts, (activation, negative_slope, direct) = paired(operands), how
        factor, column = used(weight, bias, shades)
        if direct:
            output, saved = forward(parts, factor, column, activation, negative_slope)
        else:
            with below_autograd():
                output = _concat_linear_act(*listed(parts), weight, bias, activation, negative_slope)
            saved = None if activation == "none" else output
        to_weight, to_parts = ctx.needs_input_grad[0], ctx.needs_input_grad[4 : 4 + len(parts)]
        kept = [
            (values if to_weight else None, index if to_weight or to_part else None)
            for (values, index), to_part in zip(parts, to_parts, strict=True)
        ]
        ctx.save_for_backward(factor if any(to_parts) else None, saved, *flat(kept))
        ctx.sizes = [values.shape[-1] for values, _ in parts]
        ctx.heights = [values.shape[0] for values, _ in parts]
        ctx.how, ctx.shaded = how, factor is not weight
        ctx.owners = owners(weight, bias, shades) if direct else NOBODY
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Gradients:
        count = len(ctx.sizes)
        if grad is None:
            return (None,) * (4 + 2 * count)
        factor, saved, *operands = ctx.saved_tensors
        weight, shade = (ctx.owners.weight, factor) if ctx.shaded else (factor, None)
        parts, asked = paired(operands), asked_for(ctx)
        wanted = [*asked[:2], *asked[4 : 4 + count]]
        how = ctx.how, shade, ctx.owners
        to_weight, to_bias, *rows = _differentiate(grad, parts, weight, saved, ctx.sizes, wanted, *how)
        return to_weight, to_bias, None, None, *table_gradients(rows, parts, ctx.heights), *(None,) * count


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
        shade: Tensor | None,
        owners: Owners,
        *operands: Tensor | None,
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        factor = weight if shade is None or weight is None else shade
        ctx.save_for_backward(grad, factor, saved, *operands)
        ctx.owners, ctx.weight = owners, None if factor is weight else weight
        parts, (activation, negative_slope, direct) = paired(operands), how
        form = (activation, negative_slope)
        ctx.sizes, ctx.how = sizes, how
        if direct:
            return backward("triton", grad, parts, factor, saved, sizes, wanted, *form, owners)
        with below_autograd():
            outputs = _concat_linear_act_backward(grad, *listed(parts), weight, saved, sizes, wanted, *form)
        return placed(outputs, wanted)

    @staticmethod
    def backward(ctx: Any, to_gw: Tensor | None, to_gb: Tensor | None, *to_rows: Tensor | None) -> Gradients:
        grad, factor, saved, *operands = ctx.saved_tensors
        weight, shade = (factor, None) if ctx.weight is None else (ctx.weight, factor)
        parts, (activation, negative_slope, _) = paired(operands), ctx.how
        asked, count = asked_for(ctx), len(parts)
        wants_grad, wants_weight, wants_saved = *asked[:2], asked[2] and activation in act.SMOOTH
        wants_parts = asked[8 : 8 + count]
        for_grad = for_weight = for_saved = None
        for_parts: Sequence[Tensor | None] = (None,) * count
        if wants_grad or wants_saved:
            to_g = _gradient_of_g(grad, parts, weight, shade, ctx.sizes, to_gw, to_gb, to_rows, ctx.how)
            if to_g is not None and wants_grad:
                for_grad = act.times_derivative(to_g, saved, activation, negative_slope)
            if to_g is not None and wants_saved:
                for_saved = act.times_second_derivative(to_g * grad, saved, activation)
        if any(wants_parts) and to_gw is not None:  # g to_gW, cut into columns
            wanted = (False, False, *wants_parts)
            how = ctx.how, stand_in(to_gw, grad.dtype)
            rows = _differentiate(grad, (), to_gw, saved, ctx.sizes, wanted, *how)[2:]
            for_parts = table_gradients(rows, parts, [values.shape[0] for values, _ in parts])
        if wants_weight:
            for_weight = _gradient_of_weight(grad, saved, ctx.sizes, to_rows, ctx.how, ctx.owners)
        return for_grad, for_weight, for_saved, *(None,) * 5, *for_parts, *(None,) * count


def _gradient_of_g(
    grad: Tensor,
    parts: Sequence[Part],
    weight: Tensor | None,
    shade: Tensor | None,
    sizes: Sequence[int],
    to_gw: Tensor | None,
    to_gb: Tensor | None,
    to_rows: Sequence[Tensor | None],
    how: How,
) -> Tensor | None:
    """Return cat(to_rows) W^T + cat(parts) to_gW^T + to_gb, of the terms that are there, in g's dtype."""
    total, linear, dtype = None, ("none", 0.0, how[2]), grad.dtype
    given = [(rows, None) for rows in to_rows if rows is not None]
    if given and weight is not None:
        there = [rows is not None for rows in to_rows]
        shades = None if shade is None else _columns(shade, sizes, there), stand_in(to_gb, dtype)
        total, to_gb = apply(given, _columns(weight, sizes, there), to_gb, linear, shades), None
    if to_gw is not None and parts:
        shades = stand_in(to_gw, dtype), stand_in(to_gb, dtype)
        term, to_gb = apply(parts, to_gw, to_gb, linear, shades), None
        total = term if total is None else total + term
    return total if to_gb is None else to_gb.to(dtype).expand_as(grad)


def _columns(weight: Tensor, sizes: Sequence[int], there: Sequence[bool]) -> Tensor:
    """Return the weight's columns of those parts."""
    if all(there):
        return weight
    columns = [block for block, kept in zip(weight.split(sizes, 1), there, strict=True) if kept]
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _gradient_of_weight(
    grad: Tensor,
    saved: Tensor | None,
    sizes: Sequence[int],
    to_rows: Sequence[Tensor | None],
    how: How,
    owners: Owners,
) -> Tensor | None:
    """Return g^T cat(to_rows), zeros in the columns of rows that are not there; None where none are."""
    given = [(rows, None) for rows in to_rows if rows is not None]
    if not given:
        return None
    widths = [rows.shape[-1] for rows, _ in given]
    wanted = [True] + [False] * (1 + len(given))
    whose = owners._replace(lands=len(given) == len(sizes))
    block = _differentiate(grad, given, None, saved, widths, wanted, how, None, whose)[0]
    if block is None or len(given) == len(sizes):
        return block
    blocks, height = iter(block.split(widths, 1)), grad.shape[-1]
    every = zip(sizes, to_rows, strict=True)
    return torch.cat([block.new_zeros(height, k) if rows is None else next(blocks) for k, rows in every], 1)


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
    return _ConcatLinearAct.apply(weight, bias, (*form, False), NEITHER, *values, *indices)


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
    how = (*form, False), None, NOBODY
    gradients = _ConcatLinearActBackward.apply(grad, weight, saved, sizes, wanted, *how, *values, *indices)
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
