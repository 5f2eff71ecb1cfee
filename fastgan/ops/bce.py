"""bce and bce_with_logits: PyTorch's binary cross entropies with their slopes in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.ops.backend import KERNEL_DTYPES, by_reference, register
from fastgan.ops.registration import asked_for, below_autograd, register_op, traced, transformed
from fastgan.ops.unit_gradient import times

OP = register("bce")
REDUCTIONS = ("none", "mean", "sum")
Operands = Sequence[Tensor | None]  # input, target, weight, pos_weight


def bce_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return torch.nn.functional.binary_cross_entropy_with_logits: one launch, and one backward.

    w (p t softplus(-x) + (1 - t) softplus(x)), its mean over the input's elements, or its sum.

    Args:
        input: logits, any shape and strides; bf16, fp16 or fp32, or any other dtype by plain PyTorch.
        target: of the input's shape; 0 to 1, though nobody checks.
        weight: of a shape that expands to the input's.
        reduction: ``none``, ``mean`` or ``sum``.
        pos_weight: of a shape that expands to the input's: the weight of what is positive.

    Returns:
        (), or for ``none`` as the input; in the dtype that PyTorch would return, formed in fp32. At infinite logits the
        limit, where PyTorch has NaN.

    Gradient order: any, with respect to the input; from the second on, and with respect to the target, by plain
    PyTorch. What is saved for it: the operands and the slopes.

    Raises:
        ValueError, RuntimeError: for shapes, dtypes and devices that do not go together, as the function of PyTorch.
    """
    return _choose(input, target, weight, pos_weight, reduction, True)


def bce(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Return torch.nn.functional.binary_cross_entropy: one launch, and one backward.

    w (-t log x - (1 - t) log(1 - x)) with logarithms of at least -100, and the slope (x - t) / max(x (1 - x), 1e-12).

    Args:
        input: probabilities, any shape and strides. The kernels do not stop for one outside [0, 1], as PyTorch does:
            the loss is NaN.
        target, weight, reduction: as for :func:`bce_with_logits`.

    Returns, gradient order, raises: as :func:`bce_with_logits`. Under autocast PyTorch refuses it.
    """
    return _choose(input, target, weight, None, reduction, False)


def _choose(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str, logits: bool
) -> Tensor:
    operands = input, target, weight, pos_weight
    if by_reference(OP, input) or not _fits(operands, reduction) or transformed():
        return _plain(operands, reduction, logits)
    if torch.is_autocast_enabled(input.device.type):
        if not logits:
            return _plain(operands, reduction, logits)
        dtype = torch.float32
    else:
        dtype = _promoted(operands)
    if weight is not None:
        weight = weight.expand(input.shape)
    if pos_weight is not None:
        pos_weight = pos_weight.expand(input.shape)
    operands = input, target, weight, pos_weight
    wanted = torch.is_grad_enabled() and input.requires_grad
    if traced(*operands):
        loss: Tensor = _bce(*operands, logits, reduction, dtype, wanted)[0]
        return loss
    if wanted:
        return _Bce.apply(*operands, logits, reduction, dtype, True, True)[0]
    return _by_kernels(operands, logits, reduction, dtype, False)[0]


def _plain(operands: Operands, reduction: str, logits: bool) -> Tensor:
    input, target, weight, pos_weight = operands
    assert input is not None and target is not None
    if logits:
        return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    return F.binary_cross_entropy(input, target, weight, reduction=reduction)


def _fits(operands: Operands, reduction: str) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    input, target, *weights = operands
    assert input is not None and target is not None
    return (
        reduction in REDUCTIONS
        and target.shape == input.shape
        and all(
            t is None or (t.dtype in KERNEL_DTYPES and t.device == input.device and t.layout == torch.strided)
            for t in operands
        )
        and not any(t is not None and t.requires_grad for t in operands[1:])
        and all(t is None or _expands(t.shape, input.shape) for t in weights)
    )


def _expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a shape expands to another."""
    if len(shape) > len(to):
        return False
    return all(size in (1, goal) for size, goal in zip(reversed(shape), reversed(to), strict=False))


def _promoted(operands: Operands) -> torch.dtype:
    """Return the dtype that PyTorch would compute in."""
    dtypes = [t.dtype for t in operands if t is not None]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


class _Bce(Function):
    """The loss and, where the op is seen from outside, the slopes; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, logits: bool,
        reduction: str, dtype: torch.dtype, wanted: bool, direct: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        operands = input, target, weight, pos_weight
        ctx.how = (reduction, logits, dtype, wanted)
        if direct:
            loss, slopes = _by_kernels(operands, logits, reduction, dtype, wanted)
            ctx.save_for_backward(*operands, slopes)
            return loss, None
        with below_autograd():
            loss, slopes = _bce(*operands, logits, reduction, dtype, wanted)
        ctx.mark_non_differentiable(slopes)
        ctx.save_for_backward(*operands, slopes)
        return loss, slopes

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        rest = (None,) * 5
        if grad is None:
            return (*rest, *rest[:4])
        *operands, slopes = ctx.saved_tensors
        reduction, logits, dtype, formed = ctx.how
        wanted = asked_for(ctx)[:4]
        if torch.is_grad_enabled() or any(wanted[1:]) or wanted[0] > formed:
            return (*_with_graph(operands, wanted, reduction, logits, dtype, grad), *rest)
        input = operands[0]
        gradient = times(slopes.view(input.shape), grad).to(input.dtype) if wanted[0] else None
        return (gradient, *rest[:3], *rest)


def _with_graph(
    operands: Operands, wanted: Sequence[bool], reduction: str, logits: bool, dtype: torch.dtype, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the wanted gradients by autograd through PyTorch's function, so that they have gradients of their own."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        views = [None if t is None else t.view_as(t) for t in operands]  # one tensor may come in two places
        asked = [t for t, want in zip(views, wanted, strict=True) if t is not None and want]
        loss = _plain([None if t is None else t.to(dtype) for t in views], reduction, logits)
        found = iter(torch.autograd.grad(loss, asked, grad, create_graph=graph))
    return tuple(next(found) if want else None for want in wanted)


def _by_kernels(
    operands: Operands, logits: bool, reduction: str, dtype: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel: the loss and, where they are wanted, the slopes."""
    from fastgan.kernels import bce as kernels

    input = operands[0]
    assert input is not None
    slopes = _room(input, wanted)
    flat = (None if t is None else t.detach() if t.dim() == 1 else t.reshape(-1) for t in operands)
    x, target, weight, pos_weight = flat
    assert x is not None and target is not None
    loss = kernels.bce(x, target, weight, pos_weight, slopes, logits=logits, reduction=reduction, dtype=dtype)
    return (loss.view(input.shape) if reduction == "none" else loss), slopes


def _room(input: Tensor, wanted: bool) -> Tensor | None:
    """Allocate the slopes; fp16 ones in fp32, as they may be too small before they are scaled."""
    dtype = torch.float32 if input.dtype == torch.float16 else input.dtype
    return torch.empty(input.numel(), dtype=dtype, device=input.device) if wanted else None


def _compute(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, logits: bool, reduction: str,
    dtype: torch.dtype, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    operands = input, target, weight, pos_weight
    if not by_reference(OP, input):
        loss, slopes = _by_kernels(operands, logits, reduction, dtype, wanted)
    else:
        with torch.autocast(input.device.type, enabled=False):
            loss = _plain([None if t is None else t.to(dtype) for t in operands], reduction, logits).contiguous()
        slopes = _room(input, wanted)
        if slopes is not None:
            slopes.copy_(_slopes(operands, logits, reduction).reshape(-1))
    return loss, input.new_empty(0) if slopes is None else slopes


def _slopes(operands: Operands, logits: bool, reduction: str) -> Tensor:
    """Return the derivative of what is returned by each input, as the kernel forms it."""
    x, t, weight, pos_weight = (
        None if part is None else part if part.dtype == torch.float64 else part.float() for part in operands
    )
    assert x is not None and t is not None
    if logits:
        real = t if pos_weight is None else t * pos_weight
        slope = (1 - t) * torch.sigmoid(x) - real * torch.sigmoid(-x)
    else:
        slope = (x - t) / (x * (1 - x)).clamp_min(1e-12)
    slope = slope if weight is None else slope * weight
    return slope / x.numel() if reduction == "mean" else slope


def _fake(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, logits: bool, reduction: str,
    dtype: torch.dtype, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    slopes = _room(input, wanted)
    loss = input.new_empty(input.shape if reduction == "none" else (), dtype=dtype)
    return loss, input.new_empty(0) if slopes is None else slopes


def _autograd(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, logits: bool, reduction: str,
    dtype: torch.dtype, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    operands = input, target, weight, pos_weight
    if transformed():
        return _plain([None if t is None else t.to(dtype) for t in operands], reduction, logits), input.new_empty(0)
    loss, slopes = _Bce.apply(*operands, logits, reduction, dtype, wanted, False)
    return loss, slopes


_bce = register_op(
    "bce(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, bool logits, str reduction, "
    "ScalarType dtype, bool wanted) -> (Tensor, Tensor)",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
