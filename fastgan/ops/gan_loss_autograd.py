"""gan_loss for autograd, compilers and kernels: slopes are formed with the loss, and backward scales them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from fastgan.ops import dropout
from fastgan.ops import gan_loss_formulas as formulas
from fastgan.ops.backend import by_reference
from fastgan.ops.gan_loss_formulas import Form
from fastgan.ops.gan_loss_slopes import slopes as plain_slopes
from fastgan.ops.registration import asked_for, below_autograd, register_op, transformed
from fastgan.ops.unit_gradient import times

ALIGNED = 16  # elements: both halves of the slopes begin where vectors may be stored
Operands = Sequence[Tensor | None]  # real, fake, real_weight, fake_weight, rng
Halves = tuple[Tensor | None, Tensor | None]  # of real and of fake logits


def apply(form: Form, operands: Operands, monitors: Tensor | None, direct: bool) -> Tensor:
    """Return the loss by the kernels, or by the registered op where someone must see it as one operator."""
    enabled = torch.is_grad_enabled()
    wanted = tuple(enabled and t is not None and t.requires_grad for t in operands[:2])
    if not direct:
        loss, watched, _ = _gan_loss(*operands, *form[:3], form.labels, *form[4:], wanted, monitors is not None)
        if monitors is not None:
            present = (operands[0] is not None, True) * 2
            keep([part if given else None for part, given in zip(watched, present, strict=True)], monitors)
        return loss
    if any(wanted):
        return _GanLoss.apply(*operands, form, wanted, monitors, True)[0]
    return _by_kernels(form, operands, wanted, monitors)[0]


def keep(watched: Sequence[Tensor | None], monitors: Tensor) -> None:
    """Write what is there of four values into their places."""
    with torch.no_grad():
        for at, value in enumerate(watched):
            if value is not None:
                monitors[at] = value


class _GanLoss(Function):
    """The loss, what one watches and the slopes: the latter two only where the op is seen from outside."""

    @staticmethod
    def forward(
        ctx: Any, real: Tensor | None, fake: Tensor | None, real_weight: Tensor | None, fake_weight: Tensor | None,
        rng: Tensor | None, form: Form, wanted: Sequence[bool], monitors: Tensor | bool | None, direct: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        operands = real, fake, real_weight, fake_weight, rng
        ctx.form, ctx.formed = form, tuple(wanted)
        if direct:
            assert not isinstance(monitors, bool)
            loss, slopes = _by_kernels(form, operands, wanted, monitors)
            ctx.save_for_backward(*operands, slopes)
            return loss, None, None
        with below_autograd():
            how = (*form[:3], form.labels, *form[4:])
            loss, watched, slopes = _gan_loss(*operands, *how, list(wanted), bool(monitors))
        ctx.mark_non_differentiable(watched, slopes)
        ctx.save_for_backward(*operands, slopes)
        return loss, watched, slopes

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        rest = (None,) * 7
        if grad is None:
            return (None, None, *rest)
        *operands, slopes = ctx.saved_tensors
        wanted = asked_for(ctx)[:2]
        if torch.is_grad_enabled() or any(want > formed for want, formed in zip(wanted, ctx.formed, strict=True)):
            return (*_with_graph(ctx.form, operands, wanted, grad), *rest)
        real, fake = (t if formed else None for t, formed in zip(operands[:2], ctx.formed, strict=True))
        parts = _parts(times(slopes, grad), real, fake) if all(wanted) else _parts(slopes, real, fake)
        found: list[Tensor | None] = []
        for logits, part, want in zip((real, fake), parts, wanted, strict=True):
            if logits is None or part is None or not want:
                found.append(None)
                continue
            part = part if all(wanted) else times(part, grad)
            found.append(part.view(logits.shape).to(logits.dtype))
        return (*found, *rest)


def _with_graph(form: Form, operands: Operands, wanted: Sequence[bool], grad: Tensor) -> Halves:
    """Return the wanted gradients by autograd through the formulas, so that they have gradients of their own."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():  # by views: both batches may be one tensor, which would get the gradients of both
        views = [None if t is None else t.view_as(t) for t in operands[:2]]
        asked = [t for t, want in zip(views, wanted, strict=True) if t is not None and want]
        found = iter(torch.autograd.grad(formulas.loss(form, *views, *operands[2:]), asked, grad, create_graph=graph))
    first, second = (next(found) if want else None for want in wanted)
    return first, second


def _by_kernels(
    form: Form, operands: Operands, wanted: Sequence[bool], monitors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the kernel: the loss, and the slopes of the wanted halves in one tensor."""
    from fastgan.kernels import loss as kernels

    real, fake, real_weight, fake_weight = (_flat(t) for t in operands[:4])
    slopes, parts = _room(operands[:2], wanted)
    told = kernels.Form(*form[:5], dropout.threshold(form.flip))
    loss = kernels.gan_loss(real, fake, real_weight, fake_weight, operands[4], *parts, monitors, told)
    if monitors is not None and not monitors.is_inference():
        increment_version(monitors)
    return loss, slopes


def _flat(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor in one dimension, as another object: a view where one stride leads through it."""
    if tensor is None:
        return None
    return tensor.detach() if tensor.dim() == 1 else tensor.reshape(-1)


def _room(batches: Operands, wanted: Sequence[bool]) -> tuple[Tensor, Halves]:
    """Allocate the slopes of the wanted halves; fp16 ones in fp32, as they may be too small before they are scaled."""
    real, fake = (t if want else None for t, want in zip(batches, wanted, strict=True))
    halves = [t for t in (real, fake) if t is not None]
    dtypes = {t.dtype for t in halves}
    dtype = dtypes.pop() if len(dtypes) == 1 and torch.float16 not in dtypes else torch.float32
    size = sum(t.numel() for t in halves[-1:]) + sum(_rounded(t.numel()) for t in halves[:-1])
    operand = next(t for t in batches if t is not None)
    slopes = torch.empty(size, dtype=dtype, device=operand.device)
    return slopes, _parts(slopes, real, fake)


def _parts(slopes: Tensor, real: Tensor | None, fake: Tensor | None) -> Halves:
    """Return the slopes of the batches for which some were formed."""
    if real is None or fake is None:
        return None if real is None else slopes, None if fake is None else slopes
    return slopes[: real.numel()], slopes[_rounded(real.numel()) :]


def _rounded(size: int) -> int:
    return (size + ALIGNED - 1) // ALIGNED * ALIGNED


def _form(term: str, relation: str, raised: str, labels: Sequence[float], sign: float, flip: float) -> Form:
    return Form(term, relation, raised, (labels[0], labels[1]), sign, flip)


def _compute(
    real: Tensor | None, fake: Tensor, real_weight: Tensor | None, fake_weight: Tensor | None, rng: Tensor | None,
    term: str, relation: str, raised: str, labels: Sequence[float], sign: float, flip: float, wanted: Sequence[bool],
    monitored: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    form = _form(term, relation, raised, labels, sign, flip)
    operands = real, fake, real_weight, fake_weight, rng
    watched = torch.empty(4 if monitored else 0, dtype=torch.float32, device=fake.device)
    if not by_reference("gan_loss", fake):
        loss, slopes = _by_kernels(form, operands, wanted, watched if monitored else None)
        _clear_gap(slopes, real, wanted)
        return loss, watched, slopes
    if monitored:
        keep(formulas.watch(form, real, fake), watched)
    slopes, parts = _room(operands[:2], wanted)
    for part, found in zip(parts, plain_slopes(form, *operands), strict=True):
        if part is not None and found is not None:
            part.copy_(found.reshape(-1))
    _clear_gap(slopes, real, wanted)
    return formulas.loss(form, *operands), watched, slopes


def _clear_gap(slopes: Tensor, real: Tensor | None, wanted: Sequence[bool]) -> None:
    """Write what lies between the halves: an op's outputs are the same whenever it is called."""
    if real is not None and all(wanted):
        slopes[real.numel() : _rounded(real.numel())] = 0


def _fake(
    real: Tensor | None, fake: Tensor, real_weight: Tensor | None, fake_weight: Tensor | None, rng: Tensor | None,
    term: str, relation: str, raised: str, labels: Sequence[float], sign: float, flip: float, wanted: Sequence[bool],
    monitored: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = torch.float64 if torch.float64 in (fake.dtype, None if real is None else real.dtype) else torch.float32
    watched = fake.new_empty(4 if monitored else 0, dtype=torch.float32)
    return fake.new_empty((), dtype=dtype), watched, _room((real, fake), wanted)[0]


def _autograd(
    real: Tensor | None, fake: Tensor, real_weight: Tensor | None, fake_weight: Tensor | None, rng: Tensor | None,
    term: str, relation: str, raised: str, labels: Sequence[float], sign: float, flip: float, wanted: Sequence[bool],
    monitored: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    form = _form(term, relation, raised, labels, sign, flip)
    operands = real, fake, real_weight, fake_weight, rng
    if transformed():
        return formulas.loss(form, *operands), fake.new_empty(0), fake.new_empty(0)
    loss, watched, slopes = _GanLoss.apply(*operands, form, wanted, monitored, False)
    return loss, watched, slopes


_gan_loss = register_op(
    "gan_loss(Tensor? real, Tensor fake, Tensor? real_weight, Tensor? fake_weight, Tensor? rng, str term, "
    "str relation, str raised, float[] labels, float sign, float flip, bool[] wanted, bool monitored) "
    "-> (Tensor, Tensor, Tensor)",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
