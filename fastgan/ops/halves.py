"""halves: both halves of a batch that went through a network together, joined again in backward without a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.ops.registration import traced, transformed


def halves(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half of a batch, as views: ``joint.chunk(2)``.

    Backward of a chunk writes both gradients into new memory, one launch. Where they lie one behind the other already,
    as a loss of this library leaves them, they are taken as they are. Gradient order: any.

    Args:
        joint: (2 n, ...).

    Returns:
        (n, ...) twice.
    """
    first, second = joint.chunk(2)
    if not joint.requires_grad or traced(joint) or transformed():
        return first, second
    parts: tuple[Tensor, Tensor] = _Halves.apply(joint)
    return parts


class _Halves(Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape = joint.shape
        return tuple(part.view_as(part) for part in joint.detach().chunk(2))

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None and second is None:
            return None
        if first is None or second is None:
            there = first if second is None else second
            assert there is not None
            rest = torch.zeros_like(there)
            return torch.cat((rest, there) if first is None else (there, rest))
        if not torch.is_grad_enabled() and _adjacent(first, second):
            return first.as_strided(ctx.shape, first.stride())
        return torch.cat((first, second))


def _adjacent(first: Tensor, second: Tensor) -> bool:
    """Whether two contiguous tensors are one in memory."""
    return (
        first.is_contiguous()
        and second.is_contiguous()
        and first.dtype == second.dtype
        and first.numel() > 0
        and first.untyped_storage()._cdata == second.untyped_storage()._cdata
        and first.storage_offset() + first.numel() == second.storage_offset()
    )
