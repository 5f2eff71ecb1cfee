"""Chain: an nn.Sequential that fuses across its members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.module import _has_any_global_hook

from fastgan.errors import UserError
from fastgan.nn.linear import LinearAct
from fastgan.nn.maxout import Maxout
from fastgan.ops import activation as act
from fastgan.ops import chain
from fastgan.ops.backend import by_reference
from fastgan.ops.registration import autocast, traced, transformed

ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
ROW_BY_ROW = (nn.Linear, nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten, *ACTIVATIONS)  # each sample by itself


class Fused(NamedTuple):
    """A linear layer, and the members behind it that its function takes in."""

    linear: nn.Linear
    norm: nn.BatchNorm1d | None
    layer: chain.Layer  # but for its norm, which is another in each call
    members: tuple[nn.Module, ...]


class Chain(nn.Sequential):
    """``nn.Sequential``, with the same members, parameters, ``state_dict`` and results, run as few launches.

    Linear layers (torch's or ours) with the BatchNorm1d, activation and dropout that follow them become one function of
    (batch, features): statistics leave the product's epilogue, the norm and its activation are formed where the next
    layer loads them, and nothing normalised is kept for backward. Members that it does not fuse (others, negative
    slopes, such with hooks or parametrizations) run between as they are. Where the kernels do not run, on the CPU,
    under torch.compile and while global module hooks are registered, it is the nn.Sequential.

    Shape: that of its members. Gradients of any order; through a norm, second ones go by plain arithmetic.
    """

    def forward(self, input: Tensor, groups: int = 1) -> Tensor:
        """Run the members.

        Args:
            input: (batch, ...).
            groups: equal parts of the batch, one after another, each normalised by statistics of its own: the result,
                the running statistics included, is that of as many calls.

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
        for step in self._plan():
            if isinstance(step, nn.Module):
                input = _in_parts(step, input, groups)
            else:
                input = _run(step, input, groups)
        return input

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

    def _plan(self) -> Iterator[nn.Module | list[Fused]]:
        """Yield runs of layers to fuse, and between them the members that are not fused."""
        members, run = list(self), list[Fused]()
        while members:
            fused = _take(members)
            if fused is not None:
                run.append(fused)
                continue
            if run:
                yield run
                run = []
            yield members.pop(0)
        if run:
            yield run


def _take(members: list[nn.Module]) -> Fused | None:
    """Take a linear layer and what can be fused behind it off the front of the list."""
    before, linear = list(members), members[0]
    if type(linear) not in (nn.Linear, LinearAct) or not _plain(linear):
        return None
    assert isinstance(linear, nn.Linear)
    if isinstance(linear, LinearAct) and linear.activation == "leaky_relu" and linear.negative_slope < 0:
        return None  # it would have to keep its pre-activation
    members.pop(0)
    norm, how, dropped, first = None, ("none", 0.0), 0.0, False
    if isinstance(linear, LinearAct) and (linear.activation != "none" or linear.dropout):
        how = act.check(linear.activation), linear.negative_slope
        dropped, first = linear.dropout if linear.training else 0.0, linear.dropout_first
    elif norm := _take_norm(members):
        how = _take_activation(members)
    else:
        dropped = _take_dropout(members)
        first = dropped > 0
        how = _take_activation(members)
    if norm is None and not dropped:
        dropped = _take_dropout(members)
    layer = chain.Layer(*how, dropout=dropped, dropout_first=first)
    return Fused(linear, norm, layer, tuple(before[: len(before) - len(members)]))


def _take_norm(members: list[nn.Module]) -> nn.BatchNorm1d | None:
    norm = members[0] if members else None
    if type(norm) is not nn.BatchNorm1d or not _plain(norm) or norm.eps <= 0:
        return None
    vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if any(vector is not None and not vector.is_contiguous() for vector in vectors):
        return None
    members.pop(0)
    return norm


def _take_activation(members: list[nn.Module]) -> tuple[str, float]:
    member = members[0] if members else None
    name = ACTIVATIONS.get(type(member))
    if member is None or name is None or not _plain(member):
        return "none", 0.0
    slope = member.negative_slope if isinstance(member, nn.LeakyReLU) else 0.0
    if slope < 0:
        return "none", 0.0
    members.pop(0)
    return name, slope


def _take_dropout(members: list[nn.Module]) -> float:
    member = members[0] if members else None
    if type(member) is not nn.Dropout or not _plain(member):
        return 0.0
    members.pop(0)
    return member.p if member.training else 0.0


def _plain(member: nn.Module) -> bool:
    """Whether calling the member is running its class's own forward, and nothing beside."""
    return "forward" not in vars(member) and not (
        member._forward_hooks or member._forward_pre_hooks or member._backward_hooks or member._backward_pre_hooks
    )


def _run(run: list[Fused], input: Tensor, groups: int) -> Tensor:
    """Run a stretch of fused layers on the kernels, or one by one where their operands do not go together."""
    operands = [autocast(fused.linear.weight, fused.linear.bias) for fused in run]
    (rows,) = autocast(input)
    if not _fit(run, operands, rows):
        for member in (member for fused in run for member in fused.members):
            input = _in_parts(member, input, groups)
        return input
    layers, parameters = [], list[Tensor | None]()
    for (weight, bias), fused in zip(operands, run, strict=True):
        norm = fused.norm
        parameters += [weight, bias, None if norm is None else norm.weight, None if norm is None else norm.bias]
        layers.append(fused.layer if norm is None else replace(fused.layer, norm=_ready(norm, weight, rows, groups)))
    output = chain.run(layers, groups, rows, parameters)
    for fused in run:
        if fused.norm is not None:
            _count(fused.norm, groups)
    return output


def _fit(run: list[Fused], operands: list[tuple[Tensor, Tensor | None]], rows: Tensor) -> bool:
    """Whether the kernels take what came so far, through every layer; a norm that comes twice has to count between."""
    norms = [id(fused.norm) for fused in run if fused.norm is not None]
    tensors = [tensor for pair in operands for tensor in pair if tensor is not None]
    if rows.dim() != 2 or by_reference(chain.OP, rows) or traced(rows, *tensors) or len(set(norms)) < len(norms):
        return False
    widths = [rows.shape[1], *(weight.shape[0] for weight, _ in operands)]
    fit = all(weight.shape[1] == width for (weight, _), width in zip(operands, widths, strict=False))
    return fit and all(tensor.dtype == rows.dtype and tensor.device == rows.device for tensor in tensors)


def _ready(norm: nn.BatchNorm1d, weight: Tensor, rows: Tensor, groups: int) -> chain.BatchNorm:
    """Return what a norm asks for in this call; raise what torch.nn raises."""
    if norm.num_features != weight.shape[0] and (norm.affine or norm.running_mean is not None):
        raise RuntimeError(f"running_mean should contain {weight.shape[0]} elements not {norm.num_features}")
    if not norm.training and norm.running_mean is not None:
        return chain.BatchNorm(norm.eps, False, norm.running_mean, norm.running_var)
    if rows.shape[0] == groups:
        size = torch.Size((1, norm.num_features))
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    if not norm.training or not norm.track_running_stats:
        return chain.BatchNorm(norm.eps, True, None, None)
    tracked = norm.num_batches_tracked if norm.momentum is None else None
    return chain.BatchNorm(norm.eps, True, norm.running_mean, norm.running_var, tracked, norm.momentum or 0.0)


def _count(norm: nn.BatchNorm1d, groups: int) -> None:
    """Count the batches that a training norm has seen, and tell autograd that its buffers have moved."""
    if not (norm.training and norm.track_running_stats):
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(groups)
    for buffer in (norm.running_mean, norm.running_var):
        if buffer is not None:
            increment_version(buffer)


def _in_parts(member: nn.Module, input: Tensor, groups: int) -> Tensor:
    """Call a member on all, or on each group by itself where it may mix samples."""
    if isinstance(member, Chain):
        output: Tensor = member(input, groups)
        return output
    if groups == 1 or type(member) in (*ROW_BY_ROW, LinearAct, Maxout):
        output = member(input)
        return output
    return torch.cat([member(part) for part in input.chunk(groups)])
