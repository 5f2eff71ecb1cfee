"""What norms with their activation compute, forward and backward: by the kernels, and in plain arithmetic.

A batch norm, and its sisters: an instance norm has statistics of each sample, [N, C] for [1, C], and a conditional norm
a weight and a bias of each sample, [N, C] for [C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastgan.ops import activation as act
from fastgan.ops import peers
from fastgan.ops.backend import register

if TYPE_CHECKING:
    from fastgan.kernels.norm import Norm, NormGradients, Statistics

OP = register("batch_norm_act")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias, where they are wanted


class Form(NamedTuple):
    """How to normalise and activate."""

    training: bool  # by the batch's own statistics
    eps: float
    activation: str
    slope: float
    instance: bool = False  # statistics are each sample's; the running ones serve all


class Running(NamedTuple):
    """Statistics to move in training, and to go by otherwise."""

    mean: Tensor | None
    var: Tensor | None
    tracked: Tensor | None = None  # batches seen before, where they are plain averages
    momentum: float = 0.0


def fits(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, mean: Tensor | None, var: Tensor | None
) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    if input.dim() < 2 or input.layout != torch.strided or form.eps <= 0 or (mean is None) != (var is None):
        return False
    N, C = input.shape[:2]
    alone = 0 if not form.training else N * C if form.instance else C
    if input.numel() <= alone or (mean is None and not form.training):
        return False  # one value has no variance, and none has no mean
    own = by_sample(weight, bias)
    dtype = None
    for at, vector in enumerate((weight, bias, mean, var)):
        if vector is not None:
            dtype = dtype if dtype is not None and not (own and at == 2) else vector.dtype
            shape = (N, C) if own and at < 2 else (C,)
            if vector.shape != shape or vector.dtype != dtype or vector.device != input.device:
                return False
            if dtype not in (torch.float32, input.dtype):
                return False
    return mean is None or var is None or (mean.is_contiguous() and var.is_contiguous())


def by_sample(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether weight and bias are each sample's own."""
    return any(vector is not None and vector.dim() == 2 for vector in (weight, bias))


def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, running: Running, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels: the output, and mean and var [1 or N, C] that it went by. Moves the running statistics."""
    from fastgan.kernels.norm import Statistics

    y = _rows(input).contiguous()
    if form.training:
        groups = input.shape[0] if form.instance else 1
        mean, var = (torch.empty((groups, y.shape[1]), dtype=torch.float32, device=y.device) for _ in range(2))
        team = None if form.instance else peers.current()
        here = team is None and not form.instance
        measure(y, Statistics(mean, var, *(running if here else Running(None, None))), input.shape[0])
        if team is not None:
            settle(mean, var, running, y.shape[0], team)
        elif form.instance:
            track_instances(running, mean, var, y.shape[0] // groups)
        for buffer in running[:2]:
            if buffer is not None and not buffer.is_inference():
                increment_version(buffer)
    else:
        assert running.mean is not None and running.var is not None
        mean, var = running.mean[None], running.var[None]
        if keep:  # a later training pass may move them before this one's gradient is formed
            mean, var = mean.to(torch.float32, copy=True), var.to(torch.float32, copy=True)
    return _spread(_applied(y, _norm(weight, bias, mean, var, form), input.shape[0]), input), mean, var


def measure(y: Tensor, to: Statistics, samples: int) -> None:
    """Write the statistics of groups of rows of y [M, C], which are those of so many samples."""
    if len(to.mean) == samples > 1 and to.running_mean is None:
        from fastgan.kernels.instance_norm_act import instance_norm_stats

        instance_norm_stats(y, to.mean, to.var)
    else:
        from fastgan.kernels.batch_norm_act import batch_norm_stats

        batch_norm_stats(y, to)


def _applied(y: Tensor, norm: Norm, samples: int) -> Tensor:
    if by_sample(norm.gamma, norm.beta):
        from fastgan.kernels.conditional_batch_norm_act import conditional_norm_fwd

        return conditional_norm_fwd(y, norm, samples)
    from fastgan.kernels.batch_norm_act import batch_norm_act_fwd

    return batch_norm_act_fwd(y, norm)


def backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
    form: Form, wanted: Sequence[bool],
) -> Gradients:  # fmt: skip
    """Run the kernels: one over gradient and input, and for the input's gradient in training one more."""
    from fastgan.kernels.batch_norm_act import batch_norm_correct
    from fastgan.kernels.norm import Correction, NormGradients

    y, norm = _rows(input).contiguous(), _norm(weight, bias, mean, var, form)
    lift = tilt = gw = gb = None
    if form.training and wanted[0]:
        lift, tilt = torch.empty_like(mean), torch.empty_like(mean)
    if weight is not None and wanted[1]:
        gw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if bias is not None and wanted[2]:
        gb = torch.empty_like(bias, memory_format=torch.contiguous_format)
    g = through_norm(_rows(grad), y, norm, NormGradients(lift, tilt, gw, gb), input.shape[0])
    if lift is not None and tilt is not None:
        g = batch_norm_correct(g, y, Correction(mean, *((lift, tilt) if form.instance else peers.averages(lift, tilt))))
    return _spread(g, input) if wanted[0] else None, gw, gb


def through_norm(grad: Tensor, y: Tensor, norm: Norm, to: NormGradients | None, samples: int) -> Tensor:
    """Return the gradient [M, C] of y but for what its statistics add, and write the vectors that ``to`` is for."""
    own = by_sample(norm.gamma, norm.beta)
    if not own and not len(norm.mean) == samples > 1:
        from fastgan.kernels.batch_norm_act import batch_norm_act_bwd

        return batch_norm_act_bwd(grad, y, norm, to)
    from fastgan.kernels.conditional_batch_norm_act import conditional_norm_bwd

    if own or to is None:
        return conditional_norm_bwd(grad, y, _spread_out(norm, samples), samples, to)
    parts = [None if total is None else torch.empty_like(norm.mean) for total in to[2:]]
    gy = conditional_norm_bwd(grad, y, _spread_out(norm, samples), samples, type(to)(*to[:2], *parts))
    for total, part in zip(to[2:], parts, strict=True):
        if total is not None and part is not None:
            total.copy_(part.sum(0))
    return gy


def _spread_out(norm: Norm, samples: int) -> Norm:
    """Return a norm with a row of gamma and beta for each sample, be it the same one."""
    gamma, beta = (None if t is None else t.expand(samples, -1) for t in (norm.gamma, norm.beta))
    return norm._replace(gamma=gamma, beta=beta)


def settle(mean: Tensor, var: Tensor, running: Running, rows: int, team: peers.Peers) -> None:
    """Make statistics [groups, C] of parts of so many rows each those of the whole batch, and move the running ones."""
    peers.merge_(mean, var, team)
    track(running, mean, var, rows)


@torch.no_grad()
def track(running: Running, mean: Tensor, var: Tensor, rows: int) -> None:
    """Move the running statistics towards those [groups, C] of each group in turn, the variance by its unbiased
    estimate. ``rows``: of this process's part of a group."""
    if running.mean is None or running.var is None:
        return
    rows *= peers.share()
    for group in range(len(mean)):
        step = running.momentum if running.tracked is None else (1 / (running.tracked + group + 1)).to(mean.dtype)
        for slow, batch in ((running.mean, mean[group]), (running.var, var[group] * (rows / (rows - 1)))):
            slow.copy_(torch.lerp(slow.to(batch.dtype), batch, step))


def track_instances(running: Running, mean: Tensor, var: Tensor, rows: int) -> None:
    """Move the running statistics towards the means of those [N, C] of samples of so many rows each."""
    if running.mean is not None:
        with peers.alone():
            track(running, mean.mean(0, keepdim=True), var.mean(0, keepdim=True), rows)


def _norm(weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, form: Form) -> Norm:
    from fastgan.kernels.norm import Norm

    def read(vector: Tensor | None) -> Tensor | None:  # halves of an embedding's row lie well
        return vector if vector is None or (vector.dim() == 2 and vector.stride(1) == 1) else vector.contiguous()

    return Norm(mean, var, read(weight), read(bias), *form[1:4])


def _rows(values: Tensor) -> Tensor:
    """Return (N, C, ...) as rows [M, C]: a view where the channels lie innermost."""
    if values.dim() == 2:
        return values
    C = values.shape[1]
    if lies_as_rows(values):  # one view where the general way takes two
        return values.as_strided((values.numel() // C, C), (C, 1))
    return values.movedim(1, -1).reshape(-1, C)


def _spread(rows: Tensor, input: Tensor) -> Tensor:
    """Turn contiguous rows [M, C] to the input's shape, and the layout in which PyTorch would return them.

    In place, as far as that goes: who reads a view that a Function returns could not write over it.
    """
    N, C, *space = input.shape
    if not space:
        return rows
    if C == 1 or rows.shape[0] == N:  # any layout is every layout
        return rows.resize_(input.shape)
    if lies_as_rows(input):
        return rows.as_strided_(input.shape, input.stride())
    values = rows.view(N, *space, C).movedim(-1, 1)
    if layout(input) == torch.contiguous_format:
        return values.contiguous()
    return rows.as_strided_(values.shape, values.stride())


def lies_as_rows(values: Tensor) -> bool:
    """Whether the channels lie innermost, and nothing between."""
    last = CHANNELS_LAST.get(values.dim())
    return values.dim() == 2 or (last is not None and values.is_contiguous(memory_format=last))


def layout(input: Tensor) -> torch.memory_format:
    """Return the layout of F.batch_norm's output: channels_last where the input's strides, however wide, are."""
    if input.dim() not in CHANNELS_LAST or input.is_contiguous():
        return torch.contiguous_format
    last = lies_as_rows(input) or lies_as_rows(torch.empty_like(input))
    return CHANNELS_LAST[input.dim()] if last else torch.contiguous_format


def plain_forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Do in plain arithmetic as the kernels do: the output, and mean and var [1 or N, C] that it went by."""
    normal, _, mean, var = _normalised(input, mean, var, form)
    output = act.activate(affine(normal, weight, bias), form.activation, form.slope)
    return output.to(input.dtype), mean, var


def plain_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
    form: Form, wanted: Sequence[bool],
) -> Gradients:  # fmt: skip
    """Form gradients in plain arithmetic, of which autograd forms those of any order.

    In training mean and var are functions of the input, and formed from it again.
    """
    normal, inverse, *_ = _normalised(input, None if form.training else mean, var, form)
    v = affine(normal, weight, bias)
    saved = act.activate(v, form.activation, form.slope) if form.activation in act.SMOOTH else v
    dv = grad.to(v.dtype)
    if form.activation != "none":
        dv = act.times_derivative(dv, saved, form.activation, form.slope)
    gx = gw = gb = None
    if weight is not None and wanted[1]:
        gw = _summed(dv * normal, weight)
    if bias is not None and wanted[2]:
        gb = _summed(dv, bias)
    if wanted[0]:
        dv = affine(dv, weight, None)
        if form.training:
            shift, tilt = (t.mean(_within(input, form), keepdim=True) for t in (dv, dv * normal))
            if not form.instance:
                shift, tilt = peers.mean(shift), peers.mean(tilt)
            dv = dv - shift - normal * tilt
        gx = (dv * inverse).to(input.dtype)
    return gx, gw, gb


def _summed(values: Tensor, vector: Tensor) -> Tensor:
    """Sum values (N, C, ...) to the shape and the dtype of a vector of channels, or of samples and channels."""
    dims = [*([0] if vector.dim() == 1 else []), *range(2, values.dim())]
    return (values.sum(dims) if dims else values).to(vector.dtype)


def _normalised(
    input: Tensor, mean: Tensor | None, var: Tensor | None, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (input - mean) / sqrt(var + eps), the factor, and mean and var [1 or N, C], in fp32 or better."""
    x = input if input.dtype == torch.float64 else input.float()
    if mean is None or var is None:
        over = _within(x, form)
        var, mean = torch.var_mean(x, over, correction=0) if form.instance else peers.var_mean(x, over)
    mean, var = (_as_rows(vector).to(x.dtype, copy=True) for vector in (mean, var))
    inverse = _over(torch.rsqrt(var + form.eps), x)
    return (x - _over(mean, x)) * inverse, inverse, mean, var


def affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return weight values + bias of values (N, C, ...), each [C] or [N, C], in the widest of their dtypes."""
    values = values if weight is None else values * _over(weight, values)
    return values if bias is None else values + _over(bias, values)


def _within(input: Tensor, form: Form) -> list[int]:
    """Return the dimensions that share a channel's statistics."""
    return [*([] if form.instance else [0]), *range(2, input.dim())]


def _as_rows(vector: Tensor) -> Tensor:
    return vector if vector.dim() == 2 else vector[None]


def _over(vector: Tensor, values: Tensor) -> Tensor:
    """Return a vector [C], [1, C] or [N, C] so that it goes with values (N, C, ...)."""
    return _as_rows(vector)[(..., *[None] * (values.dim() - 2))]
