"""interpolate: a random point between each real sample and its fake one, drawn on the device, in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError
from fastgan.ops import dropout, peers
from fastgan.ops.backend import by_reference, register
from fastgan.ops.registration import traced, transformed
from fastgan.ops.rows import layout_of, rows, unrowed

OP = register("interpolate")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpolate(real: Tensor, fake: Tensor, rng: Tensor | None = None) -> Tensor:
    """Return alpha * real + (1 - alpha) * fake, alpha uniform in [0, 1) and one for each sample.

    Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", algorithm 1. One launch that draws alpha too.

    Args:
        real, fake: (n, ...), of one shape and by any strides; bf16, fp16 or fp32, or float64 by plain PyTorch.
        rng: int64 (2) on the device, a seed and an offset that fix alpha, the same on every device and for every
            layout. None: drawn by PyTorch's generator; where the kernel does not run, alpha itself is.

    Returns:
        (n, ...), in the wider of the two dtypes and in the layout of ``real`` (channels_last stays), formed in fp32 by
        the kernel. Gradient order: any, with respect to real and fake.

    Raises:
        UserError: for shapes that differ, no batch dimension, integers, and an ``rng`` that is none.
    """
    if real.shape != fake.shape or not real.dim():
        raise UserError(f"samples to interpolate have one shape (n, ...), not {_shape(real)} and {_shape(fake)}")
    if not (real.is_floating_point() and fake.is_floating_point()):
        raise UserError(f"samples to interpolate are floating point, not {real.dtype} and {fake.dtype}: scale them")
    rng = rng if rng is None else dropout.usable(rng, real.device)
    if by_reference(OP, real) or not _fits(real, fake) or traced(real, fake, rng) or transformed():
        return _mix(real, fake, _alpha(real, rng))
    rng = peers.seed(real.device) if rng is None else rng
    first = peers.first(len(real))
    if torch.is_grad_enabled() and (real.requires_grad or fake.requires_grad):
        mixed: Tensor = _Interpolate.apply(real, fake, rng, first)
        return mixed
    return _launch(real, fake, rng, first)


def uniform(rng: Tensor, count: int, first: int = 0) -> Tensor:
    """Return ``count`` float32 numbers from 0 to 1, 1 excluded, from the ``first`` on: the upper 24 bits of Philox's
    words, in their order."""
    begin = first // 4
    fours = torch.arange(begin, -(-(first + count) // 4), device=rng.device)
    return (dropout.words(rng, fours).flatten()[first - 4 * begin :][:count] >> 8).float() * 2**-24


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _fits(real: Tensor, fake: Tensor) -> bool:
    """Whether the kernel takes these operands."""
    return (
        fake.device == real.device
        and real.layout == fake.layout == torch.strided
        and real.dtype in KERNEL_DTYPES
        and fake.dtype in KERNEL_DTYPES
    )


def _alpha(real: Tensor, rng: Tensor | None, first: int | None = None) -> Tensor:
    """Return alpha in float32, (n, 1, ...); of a part of a batch, that of its own rows."""

    def draw(rows: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(rows, device=real.device, generator=generator)

    rows = len(real)
    alpha = (
        peers.whole(draw, rows) if rng is None else uniform(rng, rows, peers.first(rows) if first is None else first)
    )
    return alpha.view(-1, *[1] * (real.dim() - 1))


def _mix(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Return alpha * real + (1 - alpha) * fake by plain PyTorch, rounded once."""
    return (alpha * real + (1 - alpha) * fake).to(torch.promote_types(real.dtype, fake.dtype))


def _launch(real: Tensor, fake: Tensor, rng: Tensor, first: int) -> Tensor:
    """Run the kernel on what the two are in memory: rows of elements that follow each other."""
    from fastgan.kernels import interpolate as kernels

    layout = layout_of(real)
    return unrowed(kernels.interpolate(rows(real, layout), rows(fake, layout), rng, first), real, layout)


class _Interpolate(Function):
    """The kernel with its gradient, which is linear: alpha and 1 - alpha of what comes, by plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, fake: Tensor, rng: Tensor, first: int) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rng)
        ctx.dtypes, ctx.first = (real.dtype, fake.dtype), first
        return _launch(real, fake, rng, first)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad is None:
            return None, None, None, None
        alpha, (real, fake) = _alpha(grad, ctx.saved_tensors[0], ctx.first), ctx.dtypes
        to_real, to_fake, *_ = ctx.needs_input_grad
        for_real = (alpha * grad).to(real) if to_real else None
        return for_real, ((1 - alpha) * grad).to(fake) if to_fake else None, None, None
