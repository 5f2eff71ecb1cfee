"""How a linear layer of several inputs is computed, by plain PyTorch or by our kernels, and what such an input is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import linear_compute as linear
from fastgan.ops.backend import by_reference, register
from fastgan.ops.destination import Owners, memory
from fastgan.ops.linear_choice import by_library
from fastgan.ops.linear_compute import NOBODY, as_owned, summed

OP = register("concat_linear_act")
MOST = 3  # parts that the kernels take
Part = tuple[Tensor, Tensor | None]  # values (..., k) and None, or a table (V, k) and an index (...)
Gradients = tuple[Tensor | None, ...]  # of weight, bias and each part's values, where they are wanted


class Embedded(NamedTuple):
    """Stands for ``table[index]``, as ``torch.nn.functional.embedding(index, table)``, without forming it.

    index: (...), int64 or int32, from 0 to V - 1. table: (V, k).
    """

    index: Tensor  # type: ignore[assignment]  # hides the method of that name, which nobody asks of a pair
    table: Tensor


def formed(parts: Sequence[Part]) -> Tensor:
    """Return the parts side by side, the embedded ones gathered."""
    return torch.cat([values if index is None else F.embedding(index, values) for values, index in parts], -1)


def leading(part: Part) -> torch.Size:
    """Return the dimensions that all parts share."""
    values, index = part
    return values.shape[:-1] if index is None else index.shape


def looks_up(index: Tensor, table: Tensor) -> bool:
    """Whether the kernels take this index of this table."""
    return index.dtype in (torch.int64, torch.int32) and table.dim() == 2 and table.shape[0] > 0


def flat(parts: Sequence[Any]) -> list[Any]:
    """Lay the parts out as autograd carries them: all values, then all indices."""
    return [*(values for values, _ in parts), *(index for _, index in parts)]


def paired(operands: Sequence[Any]) -> list[Any]:
    """Undo ``flat``."""
    count = len(operands) // 2
    return list(zip(operands[:count], operands[count:], strict=True))


def listed(parts: Sequence[Part]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Lay the parts out as the registered ops take them."""
    return [values for values, _ in parts], [index for _, index in parts]


def table_gradients(rows: Sequence[Tensor | None], parts: Sequence[Any], heights: Sequence[int]) -> list[Tensor | None]:
    """Add up the rows of an embedded part's gradient in the rows of its table."""
    gradients = []
    for row, (_, index), height in zip(rows, parts, heights, strict=True):
        if row is not None and index is not None:
            inside = index.clamp(0, height - 1)  # a wrong index has made its output NaN: nor may it write elsewhere
            row = torch.ops.aten.embedding_dense_backward(row, inside, height, -1, False)
        gradients.append(row)
    return gradients


def plain(parts: Sequence[Part], weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Compute it by plain PyTorch: the definition of right."""
    return act.activate(F.linear(formed(parts), weight, bias), activation, negative_slope)


def fits(parts: Sequence[Part], weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    numbers = [weight, *(values for values, _ in parts), *([] if bias is None else [bias])]
    return (
        len(parts) > 0
        and not by_reference(OP, weight)
        and all(t.layout == torch.strided and t.dim() > 0 and t.dtype == weight.dtype for t in numbers)
        and all(t is None or t.device == weight.device for t in (*flat(parts), bias))
        and all(index is None or looks_up(index, table) for table, index in parts)
        and all(leading(part) == leading(parts[0]) for part in parts)
        and weight.dim() == 2
        and sum(values.shape[-1] for values, _ in parts) == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
    )


def forward(
    parts: Sequence[Part], weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor | None]:
    """Return the output and what its derivative is taken from: the output, the pre-activation, or nothing."""
    given, keeps_pre = rows(parts), act.saves_pre_activation(activation, negative_slope)
    how = (weight, bias, activation, negative_slope, keeps_pre)
    (N, K), before = weight.shape, leading(parts[0])
    if by_library("concat_linear_fwd", math.prod(before), N, K, weight):
        output, pre = linear.product(formed(given), *how)
    else:
        from fastgan.kernels.concat_linear import concat_linear_fwd

        output, pre = concat_linear_fwd(given, *how)
    output, pre = output.view(*before, N), None if pre is None else pre.view(*before, N)
    return output, None if activation == "none" else pre if keeps_pre else output


def rows(parts: Sequence[Part]) -> list[Part]:
    """Return the parts as the kernels take them: values of two dimensions, or a table and an index of one."""
    return [(_matrix(values), None) if index is None else (values, _vector(index)) for values, index in parts]


def _matrix(values: Tensor) -> Tensor:
    return values if values.dim() == 2 else values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _vector(index: Tensor) -> Tensor:
    return index if index.dim() == 1 else index.reshape(-1)


def backward(
    backend: str,
    grad: Tensor,
    parts: Sequence[Part],
    weight: Tensor | None,
    saved: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    activation: str,
    negative_slope: float,
    owners: Owners = NOBODY,
) -> Gradients:
    """Return the wanted gradients; the parts are there where the weight's is wanted, ``weight`` where a part's is."""
    g = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])
    mask = None if saved is None else saved.reshape(g.shape).contiguous()
    blocks = [None] * len(sizes) if weight is None else weight.split(sizes, 1)
    asked = [block if want else None for block, want in zip(blocks, wanted[2:], strict=True)]
    gw = gb = None
    if backend == "triton":
        incoming = linear.settled(linear.Incoming(g, mask, activation, negative_slope), weight, None)
        gb = memory(owners.bias, g.shape[1:], g, owners.lands) if wanted[1] else None
        if wanted[0]:
            gw = memory(owners.weight, (g.shape[1], sum(sizes)), g, owners.lands)
            to_weight(incoming, rows(parts), gw, gb)
        elif gb is not None:
            summed(act.times_derivative(g, mask, activation, negative_slope), gb)
        gx = [None if block is None else linear.to_input(incoming, block) for block in asked]
    else:
        g = act.times_derivative(g, mask, activation, negative_slope)
        gw = as_owned(g.t() @ formed(rows(parts)), owners.weight) if wanted[0] else None
        gb = as_owned(g.sum(0), owners.bias) if wanted[1] else None
        gx = [None if block is None else g @ block for block in asked]
    return gw, gb, *(None if part is None else part.view(*grad.shape[:-1], part.shape[-1]) for part in gx)


def to_weight(incoming: linear.Incoming, parts: Sequence[Part], gw: Tensor, gb: Tensor | None) -> None:
    """Write g^T cat(parts) to gw, and the sum of g over the batch to gb, if it is given."""
    g, saved, activation, slope, _ = incoming[:5]
    columns = sum(values.shape[1] for values, _ in parts)
    if by_library("concat_linear_bwd_weight", g.shape[1], columns, g.shape[0], g):
        linear.to_weight(incoming, formed(parts), gw, gb)
        return
    from fastgan.kernels.concat_linear import concat_linear_bwd_weight

    concat_linear_bwd_weight(g, saved, parts, activation, slope, gb is not None, gw=gw, gb=gb)


def placed(parts: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    """Put the gradients that the op returned in their places, None in the others."""
    rest = iter(parts)
    return tuple(next(rest) if want else None for want in wanted)
