"""maxout: a linear layer of which each unit keeps the largest of its pieces, differentiable as often as asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError
from fastgan.ops import linear_autograd
from fastgan.ops.backend import by_reference, register
from fastgan.ops.destination import Owners, memory, owners
from fastgan.ops.linear_choice import by_library
from fastgan.ops.linear_compute import NOBODY, as_owned, summed
from fastgan.ops.registration import asked_for, batched, below_autograd, register_op, transformed
from fastgan.ops.shadow import NEITHER, Pair, lowered, stand_in, used

OP = register("maxout")
MOST_PIECES = 127  # that the kernels can number: more go by plain PyTorch
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias, where they are wanted


def maxout(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, pieces: int) -> Tensor:
    """Return the largest of ``pieces`` linear functions of the input for each unit: one launch, and two backward.

    Maxout networks, Goodfellow et al. 2013, section 3: output[..., u] = max over j of z[..., u * pieces + j] with
    z = input @ weight.T + bias. The discriminator of Goodfellow et al. 2014 is two such layers and a sigmoid.

    Args:
        input: (..., in_features), any strides; bf16, fp16 or fp32, or any other dtype by plain PyTorch.
        weight: (out_features * pieces, in_features), any strides, of the same dtype. Row u * pieces + j is piece j of
            unit u.
        bias: (out_features * pieces) or None.
        pieces: linear functions for each unit, 1 or more.

    Returns:
        (..., out_features), in the input's dtype, accumulated in fp32; under autocast as torch.nn.functional.linear.
        NaN in any piece gives NaN.

    Gradient order: any, with respect to input, weight and bias. The gradient goes to the largest piece alone; of equal
    ones to the first, as in ``torch.max(dim)``. The kernels compare pieces in fp32, PyTorch after rounding to 16 bits.
    What is saved for it: input, weight, and a byte for each output. Functional transforms (``torch.func``) go by plain
    PyTorch.

    Raises:
        UserError: for fewer than 1 piece, and a weight whose rows are no multiple of ``pieces``.
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.nn.functional.linear raises it.
    """
    if pieces < 1 or weight.dim() != 2 or weight.shape[0] % pieces:
        raise _misshapen(weight, pieces)
    if by_reference(OP, input):
        return _pieces(input, weight, bias, pieces).max(-1)[0]
    input, weight, bias, shades, direct = lowered(input, weight, bias)
    factors = used(weight, bias, shades)
    if not _fits(input, *factors, pieces) or transformed():
        return _pieces(input, weight, bias, pieces).max(-1)[0]
    if not direct:
        return _maxout(input, weight, bias, None, pieces)[0]
    if by_library("maxout_fwd", input.shape[:-1].numel(), weight.shape[0], weight.shape[1], input):
        every = linear_autograd.apply(input, weight, bias, "none", 0.0, True, shades)
        return every.unflatten(-1, (-1, pieces)).max(-1)[0]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _Maxout.apply(input, weight, bias, None, pieces, True, shades)[0]
    return _forward("triton", input, *factors, None, pieces, False)[0]


def check_pieces(pieces: int) -> int:
    """Return the number of pieces if a unit can have as many; raise a ``UserError`` if it cannot."""
    if pieces < 1:
        raise UserError(f"maxout needs at least 1 piece for each unit, not {pieces}: the paper's networks have 2 to 5")
    return pieces


def _misshapen(weight: Tensor, pieces: int) -> UserError:
    needed = f"maxout of {check_pieces(pieces)} pieces needs a weight of shape (out_features * pieces, in_features)"
    return UserError(f"{needed}, not {tuple(weight.shape)}: add rows or mend pieces")


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    return (
        not by_reference(OP, input)
        and pieces <= MOST_PIECES
        and input.layout == weight.layout == torch.strided
        and input.dim() > 0
        and input.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all(t is None or (t.dtype == input.dtype and t.device == input.device) for t in (weight, bias))
    )


def _pieces(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    """Return every piece, (..., out_features, pieces), by plain PyTorch."""
    return F.linear(input, weight, bias).unflatten(-1, (weight.shape[0] // pieces, pieces))


def _largest(every: Tensor) -> tuple[Tensor, Tensor]:
    """Return of (..., out_features, pieces) the largest, (..., out_features), and which they were."""
    output, index = every.max(-1)
    return output, index.to(torch.int8)


def _named(every: Tensor, index: Tensor) -> Tensor:
    """Return of (..., out_features, pieces) those that the index (..., out_features) names."""
    return every.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)


def _select(
    input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, pieces: int, direct: bool, shade: Tensor | None
) -> Tensor:
    """Return the pieces that the index names, with a graph of their own where one is being recorded."""
    if not direct:
        return _maxout(input, weight, bias, index, pieces)[0]
    shades = shade, stand_in(bias, input.dtype)
    if torch.is_grad_enabled():
        return _Maxout.apply(input, weight, bias, index, pieces, True, shades)[0]
    return _forward("triton", input, *used(weight, bias, shades), index, pieces, False)[0]


def _differentiate(
    grad: Tensor, input: Tensor | None, weight: Tensor | None, index: Tensor, wanted: Sequence[bool], pieces: int,
    direct: bool, shade: Tensor | None = None, owners: Owners = NOBODY,
) -> Gradients:  # fmt: skip
    """Return the wanted gradients, with a graph of their own where one is being recorded."""
    operands = grad, input if wanted[1] else None, weight if wanted[0] else None, index
    if not direct:
        return _placed(_maxout_backward(*operands, pieces, wanted), wanted)
    if batched(*operands):
        factor = weight if shade is None or weight is None else weight.to(grad.dtype)
        return _backward("reference", *operands[:2], factor, index, pieces, wanted, owners)
    if torch.is_grad_enabled():
        return _MaxoutBackward.apply(*operands, pieces, wanted, True, shade, owners._replace(lands=False))
    factor = operands[2] if shade is None or not wanted[0] else shade
    return _backward("triton", *operands[:2], factor, index, pieces, wanted, owners)


class _Maxout(Function):
    """The largest pieces and their index, or the pieces that a given index names (and None). Saves x, W, the index."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, pieces: int, direct: bool,
        shades: Pair = NEITHER,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        factor, column = used(weight, bias, shades)
        if direct:
            output, found = _forward("triton", input, factor, column, index, pieces, index is None)
        else:
            with below_autograd():
                parts = _maxout(input, weight, bias, index, pieces)
            output, found = parts[0], parts[1] if index is None else None
        if found is not None:
            ctx.mark_non_differentiable(found)
        to_input, to_weight = ctx.needs_input_grad[:2]
        index = index if found is None else found
        ctx.save_for_backward(input if to_weight else None, factor if to_input else None, index)
        ctx.how, ctx.shaded = (pieces, direct), factor is not weight
        ctx.owners = owners(weight, bias, shades) if direct else NOBODY
        return output, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        input, factor, index = ctx.saved_tensors
        weight, shade = (ctx.owners.weight, factor) if ctx.shaded else (factor, None)
        more = asked_for(ctx)[:3], *ctx.how, shade, ctx.owners
        return *_differentiate(grad, input, weight, index, *more), *(None,) * 4


class _MaxoutBackward(Function):
    """gz = gy in the chosen piece, 0 in the others; gx = gz W, gW = gz^T x, gb = sum of gz, as functions of gy, x, W.

    The choice is a constant: nothing flows into it.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, input: Tensor | None, weight: Tensor | None, index: Tensor, pieces: int,
        wanted: Sequence[bool], direct: bool, shade: Tensor | None = None, owners: Owners = NOBODY,
    ) -> Gradients:  # fmt: skip
        ctx.set_materialize_grads(False)
        factor = weight if shade is None or weight is None else shade
        ctx.save_for_backward(grad, input, factor, index)
        ctx.how, ctx.owners = (pieces, direct), owners
        ctx.weight = None if factor is weight else weight
        if direct:
            return _backward("triton", grad, input, factor, index, pieces, wanted, owners)
        with below_autograd():
            parts = _maxout_backward(grad, input, weight, index, pieces, wanted)
        return _placed(parts, wanted)

    @staticmethod
    def backward(
        ctx: Any, to_gx: Tensor | None, to_gw: Tensor | None, to_gb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, input, factor, index = ctx.saved_tensors
        weight, shade = (factor, None) if ctx.weight is None else (ctx.weight, factor)
        wants_grad, wants_input, wants_weight, *_ = asked_for(ctx)
        for_grad = for_input = for_weight = None
        if wants_grad:
            for_grad = _gradient_of_grad(grad.dtype, input, weight, shade, index, to_gx, to_gw, to_gb, *ctx.how)
        if wants_input and to_gw is not None:  # gz to_gW
            how = *ctx.how, stand_in(to_gw, grad.dtype)
            for_input = _differentiate(grad, None, to_gw, index, (True, False, False), *how)[0]
        if wants_weight and to_gx is not None:  # gz^T to_gx
            how = *ctx.how, None, ctx.owners._replace(lands=True)
            for_weight = _differentiate(grad, to_gx, None, index, (False, True, False), *how)[1]
        return for_grad, for_input, for_weight, *(None,) * 6


def _gradient_of_grad(
    dtype: torch.dtype, input: Tensor | None, weight: Tensor | None, shade: Tensor | None, index: Tensor,
    to_gx: Tensor | None, to_gw: Tensor | None, to_gb: Tensor | None, pieces: int, direct: bool,
) -> Tensor | None:  # fmt: skip
    """Return the chosen pieces of to_gx W^T + x to_gW^T + to_gb, of the terms that are there."""
    total = None
    if to_gx is not None and weight is not None:
        total, to_gb = _select(to_gx, weight, to_gb, index, pieces, direct, shade), None
    if to_gw is not None and input is not None:
        term, to_gb = _select(input, to_gw, to_gb, index, pieces, direct, stand_in(to_gw, dtype)), None
        total = term if total is None else total + term
    return total if to_gb is None else _named(to_gb.to(dtype).view(-1, pieces).expand(*index.shape, pieces), index)


def _forward(
    backend: str, input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, pieces: int,
    with_index: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the largest pieces, with their index where it is asked for; or the pieces of a given index."""
    if backend != "triton":
        every = _pieces(input, weight, bias, pieces)
        return _largest(every) if index is None else (_named(every, index), None)
    from fastgan.kernels import maxout as kernels

    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    shape = (*input.shape[:-1], weight.shape[0] // pieces)
    if index is not None:
        chosen = index.reshape(rows.shape[0], shape[-1]).contiguous()
        return kernels.maxout_select(rows, weight, bias, chosen, pieces).view(shape), None
    flat, found = kernels.maxout_fwd(rows, weight, bias, pieces, with_index)
    return flat.view(shape), None if found is None else found.view(shape)


def _backward(
    backend: str, grad: Tensor, input: Tensor | None, weight: Tensor | None, index: Tensor, pieces: int,
    wanted: Sequence[bool], owners: Owners = NOBODY,
) -> Gradients:  # fmt: skip
    """Return the wanted gradients; ``input`` is there where the weight's is wanted, ``weight`` where the input's is."""
    g = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
    chosen = index.reshape(g.shape).contiguous()
    x = None if input is None else input.reshape(g.shape[0], input.shape[-1])
    gx = gw = gb = None
    if backend == "triton" and (wanted[0] or wanted[1]):
        from fastgan.kernels import maxout as kernels

        gx = kernels.maxout_bwd_input(g, chosen, weight, pieces) if wanted[0] and weight is not None else None
        gb = memory(owners.bias, (g.shape[1] * pieces,), g, owners.lands) if wanted[2] else None
        if wanted[1] and x is not None:
            gw = memory(owners.weight, (g.shape[1] * pieces, x.shape[1]), g, owners.lands)
            kernels.maxout_bwd_weight(g, chosen, x, pieces, wanted[2], gw=gw, gb=gb)
        elif gb is not None:
            summed(_spread(g, chosen, pieces), gb)
    else:
        z = _spread(g, chosen, pieces)
        gx = z @ weight if wanted[0] and weight is not None else None
        gw = as_owned(z.t() @ x, owners.weight) if wanted[1] and x is not None else None
        gb = as_owned(z.sum(0), owners.bias) if wanted[2] else None
    return None if gx is None else gx.view(*grad.shape[:-1], gx.shape[-1]), gw, gb


def _spread(grad: Tensor, index: Tensor, pieces: int) -> Tensor:
    """Return gz (rows, out_features * pieces): grad (rows, out_features) in the chosen pieces, 0 in the others."""
    chosen = index.unsqueeze(-1) == torch.arange(pieces, dtype=torch.int8, device=index.device)
    return torch.where(chosen, grad.unsqueeze(-1), 0).reshape(grad.shape[0], -1)


def _placed(parts: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """Put the gradients that the op returned in their places, None in the others."""
    rest = iter(parts)
    gx, gw, gb = (next(rest) if want else None for want in wanted)
    return gx, gw, gb


def _compute(input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, pieces: int) -> list[Tensor]:
    backend = "triton" if _fits(input, weight, bias, pieces) else "reference"
    with torch.autocast(input.device.type, enabled=False):  # the caller has cast
        output, found = _forward(backend, input, weight, bias, index, pieces, index is None)
    return [output] if found is None else [output, found]


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, pieces: int) -> list[Tensor]:
    torch._check(input.shape[-1] == weight.shape[1], lambda: f"input {input.shape} does not fit weight {weight.shape}")
    output = input.new_empty((*input.shape[:-1], weight.shape[0] // pieces))
    return [output] if index is not None else [output, torch.empty_like(output, dtype=torch.int8)]


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, pieces: int) -> list[Tensor]:
    if transformed():
        every = _pieces(input, weight, bias, pieces)
        return list(_largest(every)) if index is None else [_named(every, index)]
    output, found = _Maxout.apply(input, weight, bias, index, pieces, False)
    return [output] if found is None else [output, found]


def _compute_backward(
    grad: Tensor, input: Tensor | None, weight: Tensor | None, index: Tensor, pieces: int, wanted: Sequence[bool]
) -> list[Tensor]:
    backend = "reference" if by_reference(OP, grad) else "triton"
    with torch.autocast(grad.device.type, enabled=False):
        gradients = _backward(backend, grad, input, weight, index, pieces, wanted)
    return [gradient for gradient in gradients if gradient is not None]


def _fake_backward(
    grad: Tensor, input: Tensor | None, weight: Tensor | None, index: Tensor, pieces: int, wanted: Sequence[bool]
) -> list[Tensor]:
    outputs, rows = [], grad.shape[-1] * pieces
    if wanted[0] and weight is not None:
        outputs.append(grad.new_empty((*grad.shape[:-1], weight.shape[1])))
    if wanted[1] and input is not None:
        outputs.append(grad.new_empty((rows, input.shape[-1])))
    if wanted[2]:
        outputs.append(grad.new_empty((rows,)))
    return outputs


def _autograd_backward(*arguments: Any) -> list[Tensor]:
    return [gradient for gradient in _MaxoutBackward.apply(*arguments, False) if gradient is not None]


_maxout = register_op(  # returns the largest pieces and their index, or the pieces that a given index names
    "maxout(Tensor input, Tensor weight, Tensor? bias, Tensor? index, int pieces) -> Tensor[]",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
_maxout_backward = register_op(
    "maxout_backward(Tensor grad, Tensor? input, Tensor? weight, Tensor index, int pieces, bool[3] wanted) -> Tensor[]",
    compute=_compute_backward,
    fake=_fake_backward,
    autograd=_autograd_backward,
)
