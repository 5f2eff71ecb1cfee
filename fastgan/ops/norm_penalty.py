"""norm_penalty: the mean penalty on the norms of a critic's gradients, in one launch, and its slope in another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError
from fastgan.ops.backend import KERNEL_DTYPES, by_reference, register
from fastgan.ops.registration import traced, transformed
from fastgan.ops.rows import layout_of, rows, unrowed

OP = register("norm_penalty")
How = tuple[float, bool, float]  # center, one_sided, scale


def norm_penalty(
    gradient: Tensor, *, center: float = 0.0, one_sided: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return scale * E[(||g|| - center)^2] over samples, and the mean norm, which is detached.

    Gulrajani et al. 2017, eq. 3 (center 1); Mescheder et al. 2018, eq. 9 (center 0, scale 1/2). Where a gradient is 0
    its norm has none: 0 is taken, not NaN.

    Args:
        gradient: (n, ...), of any strides: each sample's; bf16, fp16 or fp32, or any other dtype by plain PyTorch.
        center: the norm to be at, at least 0.
        one_sided: shorter gradients are free: E[max(0, ||g|| - center)^2], Petzka et al. 2018.
        scale: of the mean.

    Returns:
        Both (), fp32, formed in fp32; fp64 for fp64. NaN where there is no sample. Gradient order: any; the first one
        comes in the gradient's dtype and layout, from the second on by plain PyTorch. What is saved for it: the
        gradient, and the norms.

    Raises:
        UserError: for a center below 0, integers, and no batch dimension.
    """
    if not gradient.is_floating_point() or not gradient.dim():
        kind = f"{str(gradient.dtype).removeprefix('torch.')} {tuple(gradient.shape)}"
        raise UserError(f"norm_penalty takes gradients (n, ...) in floating point, not {kind}")
    if center < 0:
        raise UserError(f"no norm is {center:g}: center has to be at least 0")
    how = float(center), one_sided, float(scale)
    kernels = gradient.dtype in KERNEL_DTYPES and gradient.layout == torch.strided
    if by_reference(OP, gradient) or not kernels or traced(gradient) or transformed():
        return plain(gradient, *how)
    if torch.is_grad_enabled() and gradient.requires_grad:
        value, norm = _NormPenalty.apply(gradient, how)
        return value, norm
    return _forward(gradient, how)[:2]


def plain(gradient: Tensor, center: float, one_sided: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the same by PyTorch's own operators: the definition of right."""
    gradient = gradient if gradient.dtype == torch.float64 else gradient.float()
    dims = tuple(range(1, gradient.dim()))
    if center == 0:  # the square itself: it has a second derivative where the norm has not even a first
        squares = gradient.square()
        squares = squares.sum(dims) if dims else squares
        terms, norms = squares, squares.detach().sqrt()
    else:
        norms = torch.linalg.vector_norm(gradient, dim=dims) if dims else gradient.abs()
        excess = norms - center
        terms = (excess.relu() if one_sided else excess).square()
    mean = terms.mean()
    return mean if scale == 1 else mean * scale, norms.detach().mean()


class _NormPenalty(Function):
    """The kernels; a gradient of the gradient goes by the formula."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, how: How) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        value, norm, norms = _forward(gradient, how)
        ctx.mark_non_differentiable(norm)
        ctx.save_for_backward(gradient, norms)
        ctx.how = how
        return value, norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        gradient, norms = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed():
            with torch.enable_grad():
                value, _norm = plain(gradient, *ctx.how)
                (slope,) = torch.autograd.grad(value, gradient, grad, create_graph=True)
            return slope, None
        return _backward(gradient, norms, grad, ctx.how), None


def _forward(gradient: Tensor, how: How) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel on what samples are in memory: rows of elements that follow each other."""
    from fastgan.kernels import norm_penalty as kernels

    center, one_sided, scale = how
    lying = rows(gradient, layout_of(gradient))
    return kernels.norm_penalty_fwd(lying, center=center, one_sided=one_sided, scale=scale)


def _backward(gradient: Tensor, norms: Tensor, grad: Tensor, how: How) -> Tensor:
    from fastgan.kernels import norm_penalty as kernels

    center, one_sided, scale = how
    layout = layout_of(gradient)
    lying = rows(gradient, layout)
    slope = kernels.norm_penalty_bwd(lying, norms, grad, center=center, one_sided=one_sided, scale=scale)
    return unrowed(slope, gradient, layout)
