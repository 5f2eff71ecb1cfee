"""Chain: an nn.Sequential that fuses across its members."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from fastgan.errors import UserError
from fastgan.nn.chain_members import ACTIVATIONS, Fused, Norm, kind_of, overwrites, plan
from fastgan.nn.conv import Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct
from fastgan.nn.linear import LinearAct
from fastgan.nn.maxout import Maxout
from fastgan.ops import chain, peers
from fastgan.ops.activation import activate
from fastgan.ops.backend import by_reference
from fastgan.ops.chain_layer import BatchNorm, InstanceNorm, Layer
from fastgan.ops.conv_compute import NOTHING
from fastgan.ops.registration import autocast, traced, transformed
from fastgan.ops.shadow import Pair, stand_ins, used

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
CONVOLUTIONS_ACT = (Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct)
SHAPING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten, nn.Upsample)
SAMPLE_BY_SAMPLE = (nn.Linear, LinearAct, Maxout, *CONVOLUTIONS, *CONVOLUTIONS_ACT, *SHAPING, *ACTIVATIONS)


class Chain(nn.Sequential):
    """``nn.Sequential``, with the same members, parameters, ``state_dict`` and results, run as few launches.

    Linear layers and convolutions (torch's or ours, transposed ones too) with the batch norm and activation that follow
    them, dropout behind a linear one, and before a convolution nearest-neighbour up-sampling and, where no layer before
    it takes it, an activation become one function; convolutions with an instance norm too, unless that tracks running
    statistics. Statistics leave the product's epilogue, the norm and its activation are formed where the next layer
    loads them, and nothing normalised is kept for backward. Members that it does not fuse (others, grouped
    convolutions, negative slopes, a ``pre_activation``, such with hooks) run between as they are; weights may be
    parametrized, or formed by the hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm``. Where the kernels do
    not run, on the CPU, under torch.compile and while global module hooks are registered, it is the nn.Sequential.

    What goes into an activation that a convolution takes is kept for backward in the place of its output: as in front
    of PyTorch's LeakyReLU, and here of a ReLU, Tanh or Sigmoid too, autograd refuses if it is written to before.

    Shape: that of its members. Gradients of any order; through a norm, second ones go by plain arithmetic.
    """

    def forward(self, input: Tensor, groups: int = 1) -> Tensor:
        """Run the members.

        Args:
            input: (batch, ...).
            groups: equal parts of the batch, one after another, each normalised by statistics of its own: the result,
                the running statistics included, is that of as many calls. Parametrized weights are formed once.

        Raises:
            UserError: where the batch does not fall into that many equal parts.
            ValueError: for a batch (or part) of one sample in front of a training norm, as torch.nn raises it.
        """
        if groups != 1 and (groups < 1 or input.shape[0] % groups):
            raise UserError(f"a batch of {input.shape[0]} does not fall into {groups} equal groups")
        if (
            (input.is_floating_point() and by_reference(chain.OP, input))
            or traced(input)
            or transformed()
            or _has_any_global_hook()
        ):
            return self._one_by_one(input, groups)
        return through(list(self), input, groups)

    def fold(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Run several batches of one size through in one pass, each by its own statistics: ``fold(real, fake)``."""
        if not batches:
            raise UserError("fold takes batches: chain.fold(real, fake)")
        if len({batch.shape for batch in batches}) > 1:
            raise UserError(f"batches to fold have one shape, not {', '.join(str(tuple(b.shape)) for b in batches)}")
        return self(torch.cat(batches), len(batches)).chunk(len(batches))

    def _one_by_one(self, input: Tensor, groups: int) -> Tensor:
        for member in self:
            input = _in_parts(member, input, groups)
        return input


def through(members: list[nn.Module], input: Tensor, groups: int = 1) -> Tensor:
    """Run members one after another, those that go together on the kernels. Empties the list."""
    last: Fused | None = None
    for step in plan(members):
        if not isinstance(step, nn.Module):
            input, last = _run(step, input, groups), step[-1]
            continue
        if last and (overwrites(step) or (last.keeps_result and any(map(overwrites, step.modules())))):
            input = input.clone()  # the layers before it have their output for a mask
        input, last = _in_parts(step, input, groups), None
    return input


def _run(run: list[Fused], input: Tensor, groups: int) -> Tensor:
    """Run a stretch of fused layers on the kernels, or one by one where their operands do not go together."""
    formed = [id(fused.core) for fused in run if fused.formed]
    if len(set(formed)) < len(formed):  # weights that are formed anew at each use: a power iteration is a step
        return _members_of(run, input, groups)
    with parametrize.cached() if formed else contextlib.nullcontext():
        for fused in run:
            fused.form(input)
        operands = [fused.operands() for fused in run]
        (values,) = autocast(input)
        shades: list[Pair] = [stand_ins(input, *pair) for pair in operands]  # type: ignore[misc]
        factors = [used(*pair, shade) for pair, shade in zip(operands, shades, strict=True)]
        if not _fit(run, factors, values):
            return _members_of(run, input, groups, formed=True)
    first = run[0].layer.before
    if first != NOTHING and values.dtype != input.dtype:  # PyTorch's activation runs before the cast
        (values,), first = autocast(activate(input, *first)), NOTHING
    values = values.unsqueeze(2) if run[0].dims == 3 else values
    groups = len(values) if any(fused.by_instance for fused in run) else groups
    layers, parameters = list[Layer](), list[Tensor | None]()
    for (weight, bias), fused, size in zip(operands, run, _sizes(run, operands, values.shape), strict=True):
        norm, layer = fused.norm, replace(fused.layer, before=NOTHING if layers else first)
        if fused.by_instance and norm is not None:
            layer = replace(layer, norm=InstanceNorm(norm.eps, True, None, None))
        elif norm is not None:
            part = torch.Size((size[0] // groups, size[1], *(size[3:] if fused.dims == 3 else size[2:])))
            layer = replace(layer, norm=_ready(norm, part))
        layers.append(layer)
        parameters += [weight, bias, None if norm is None else norm.weight, None if norm is None else norm.bias]
    output = chain.run(layers, groups, values, parameters, shades)
    _count([fused.norm for fused in run if fused.norm is not None], groups)
    return output.squeeze(2).contiguous() if run[0].dims == 3 else output


def _members_of(run: list[Fused], input: Tensor, groups: int, formed: bool = False) -> Tensor:
    """Run the members of a stretch one by one. ``formed``: hooks have set their weights already."""
    for fused in run:
        for member in fused.members:
            hooked = formed and member is fused.core and member._forward_pre_hooks
            input = member.forward(input) if hooked else _in_parts(member, input, groups)
    return input


def _sizes(run: list[Fused], operands: list[tuple[Tensor, Tensor | None]], size: torch.Size) -> Iterator[torch.Size]:
    """Yield the size of each layer's output; end early where one does not take what comes."""
    for (weight, _), fused in zip(operands, run, strict=True):
        form = fused.layer.form
        depth, cols = (weight.shape[1], weight.shape[0]) if form is None else form.channels(weight)
        if depth != size[1]:
            return
        size = torch.Size((size[0], cols, *(() if form is None else form.size(size, weight.shape))))
        yield size


def _fit(run: list[Fused], operands: list[tuple[Tensor, Tensor | None]], values: Tensor) -> bool:
    """Whether the kernels take what came so far, through every layer; a norm that comes twice has to count between."""
    norms = [id(fused.norm) for fused in run if fused.norm is not None]
    tensors = [tensor for pair in operands for tensor in pair if tensor is not None]
    if values.dim() != run[0].dims or by_reference(chain.OP, values) or traced(values, *tensors):
        return False
    if len(set(norms)) < len(norms):
        return False
    sizes = list(_sizes(run, operands, values.unsqueeze(2).shape if values.dim() == 3 else values.shape))
    if len(sizes) < len(run) or any(min(size[2:], default=1) < 1 for size in sizes):
        return False
    instances = ((fused.norm, size) for fused, size in zip(run, sizes, strict=True) if fused.by_instance)
    if any(norm is None or norm.num_features != size[1] or size[2:].numel() < 2 for norm, size in instances):
        return False  # PyTorch says what is wrong
    if values.dim() > 2 and not all(tensor.numel() for tensor in (values, *tensors)):
        return False
    if not all(tensor.dtype == values.dtype and tensor.device == values.device for tensor in tensors):
        return False
    vectors = (v for f in run if (n := f.norm) for v in (n.weight, n.bias, n.running_mean, n.running_var))
    kinds = values.dtype, torch.float32
    return all(v is None or (v.dtype in kinds and v.device == values.device) for v in vectors)


def _ready(norm: Norm, size: torch.Size) -> BatchNorm:
    """Return what a norm of outputs of that size asks for in this call; raise what torch.nn raises."""
    if norm.num_features != size[1] and (norm.affine or norm.running_mean is not None):
        first = "weight" if norm.running_mean is None else "running_mean"
        raise RuntimeError(f"{first} should contain {size[1]} elements not {norm.num_features}")
    if not norm.training and norm.running_mean is not None:
        return BatchNorm(norm.eps, False, norm.running_mean, norm.running_var)
    if size.numel() * peers.share() == size[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    if not norm.training or not norm.track_running_stats:
        return BatchNorm(norm.eps, True, None, None)
    tracked = norm.num_batches_tracked if norm.momentum is None else None
    return BatchNorm(norm.eps, True, norm.running_mean, norm.running_var, tracked, norm.momentum or 0.0)


def _count(norms: list[Norm], groups: int) -> None:
    """Count the batches that training norms have seen, and tell autograd that their buffers have moved."""
    moved = [norm for norm in norms if norm.training and norm.track_running_stats]
    counts = [norm.num_batches_tracked for norm in moved if norm.num_batches_tracked is not None]
    if counts:
        torch._foreach_add_(counts, groups)
    buffers = (buffer for norm in moved for buffer in (norm.running_mean, norm.running_var))
    increment_version([buffer for buffer in buffers if buffer is not None and not buffer.is_inference()])


def _in_parts(member: nn.Module, input: Tensor, groups: int) -> Tensor:
    """Call a member on all, or on each group by itself where it may mix samples."""
    if groups == 1 or kind_of(member) in SAMPLE_BY_SAMPLE:
        output: Tensor = member(input)
        return output
    if type(member).forward is Chain.forward:
        output = member(input, groups)
        return output
    return torch.cat([member(part) for part in input.chunk(groups)])
