"""One layer of a chain: a product, linear or a convolution, and what follows it; one way to call both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan.ops import conv_autograd, conv_compute, linear_autograd, linear_compute, peers
from fastgan.ops.conv_compute import NOTHING
from fastgan.ops.conv_form import Form
from fastgan.ops.conv_tracing import below
from fastgan.ops.destination import Owners, memory
from fastgan.ops.linear_compute import Incoming
from fastgan.ops.shadow import Pair

if TYPE_CHECKING:
    from fastgan.kernels.linear import Dropout
    from fastgan.kernels.linear_bwd_input import Below
    from fastgan.kernels.norm import Norm, NormGradients, Statistics


class BatchNorm(NamedTuple):
    """What a batch norm asks for in this call."""

    eps: float
    training: bool  # by the batch's statistics
    running_mean: Tensor | None  # in training, to be moved; else what to go by
    running_var: Tensor | None
    tracked: Tensor | None = None  # batches seen before, where the running ones are plain averages
    momentum: float = 0.0


class InstanceNorm(BatchNorm):
    """What an instance norm asks for: a batch norm of groups of one sample, whatever other processes do."""


@dataclass(frozen=True)
class Layer:
    """One layer of a chain and what follows it: a norm, an activation; or an activation and dropout."""

    activation: str = "none"
    slope: float = 0.0
    norm: BatchNorm | None = None
    dropout: float = 0.0
    dropout_first: bool = False
    form: Form | None = None  # of a convolution; None: it is linear
    before: tuple[str, float] = NOTHING  # an activation of the input of a chain's first layer, a convolution

    @property
    def after(self) -> tuple[str, float]:
        """The activation in the epilogue of its product: where a norm follows, it is the norm's affair."""
        return (self.activation, self.slope) if self.norm is None else ("none", 0.0)

    def features(self, weight: Tensor) -> int:
        """Return how many features it puts out."""
        return weight.shape[0] if self.form is None else self.form.channels(weight)[1]

    def product(
        self,
        u: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Norm | None,
        dropout: Dropout | None,
        statistics: Statistics | None,
    ) -> Tensor:
        """Return its output, raw where a norm follows; ``norm`` is what u has yet to go through."""
        if self.form is not None:
            around: dict[str, Any] = {"norm": norm, "before": self.before, "statistics": statistics}
            return conv_compute.product(u, weight, bias, self.form, *self.after, **around)
        more: dict[str, Any] = {"norm": norm, "dropout": dropout, "statistics": statistics}
        return linear_compute.product(u, weight, bias, *self.after, **more)[0]

    def ahead(self, input: Tensor) -> Below | None:
        """Return what the gradient of the chain's input goes through: the activation in front of the first layer."""
        return below(input, self.before)

    def settled(
        self,
        incoming: Incoming,
        weight: Tensor,
        operand: Tensor,
        wanted: Sequence[bool],
        below: Below | None,
        norm: Norm | None,
        gb: Tensor | None,
    ) -> Incoming:
        """Form the incoming gradient once where its readers cannot, and the bias's, gb, where that is no by-product.

        ``wanted``: of the input, and of the weight.
        """
        inward, outward = wanted
        x = operand if outward else None
        if self.form is not None:
            return conv_compute.settled(incoming, weight, x, self.form, operand.shape, inward, below, norm, gb)
        return linear_compute.settled(incoming, weight if inward else None, x, below, norm, gb)

    def to_input(
        self,
        incoming: Incoming,
        weight: Tensor,
        operand: Tensor,
        below: Below | None = None,
        norm: Norm | None = None,
        to: NormGradients | None = None,
    ) -> Tensor:
        """Return the gradient of the operand, gone through what it came out of."""
        raw = None if norm is None else operand
        if self.form is not None:
            more = self.form, operand.shape
            return conv_compute.to_input(incoming, weight, *more, below=below, norm=norm, raw=raw, to=to)
        return linear_compute.to_input(incoming, weight, below=below, norm=norm, raw=raw, to=to)

    def to_weight(
        self,
        incoming: Incoming,
        operand: Tensor,
        weight: Tensor,
        gb: Tensor | None,
        norm: Norm | None,
        owners: Owners,
    ) -> Tensor:
        """Return the gradient of the weight, and write that of the bias to gb, where it is given and not written."""
        if self.form is not None:
            around: dict[str, Any] = {"norm": norm, "before": self.before, "owners": owners}
            return conv_compute.to_weight(incoming, operand, weight, self.form, gb, **around)
        gw = memory(owners.weight, weight.shape, weight)
        linear_compute.to_weight(incoming, operand, gw, gb, norm=norm)
        return gw

    def to_bias(self, incoming: Incoming, gb: Tensor) -> None:
        """Write the gradient of the bias alone to gb."""
        if self.form is None:
            linear_compute.to_bias(incoming, gb)
        else:
            conv_compute.to_bias(incoming, gb)

    def apply(self, u: Tensor, weight: Tensor, bias: Tensor | None, shades: Pair) -> Tensor:
        """Compute its output with a graph of its own; no dropout."""
        if self.form is not None:
            return conv_autograd.apply(u, weight, bias, self.form, *self.after, True, shades=shades)
        return linear_autograd.apply(u, weight, bias, *self.after, True, shades)

    def differentiate(
        self, grad: Tensor, weight: Tensor, shade: Tensor | None, mask: Tensor | None, operand: Tensor
    ) -> Tensor:
        """Return the gradient of the operand with a graph of its own, ``mask`` being the output."""
        how = *(self.after if mask is not None else ("none", 0.0)), True, shade, Owners(weight)
        only = (True, False, False)
        if self.form is not None:
            gradients = conv_autograd.differentiate(grad, None, weight, mask, operand.shape, only, self.form, *how)
        else:
            gradients = linear_autograd.differentiate(grad, None, weight, mask, only, *how)
        assert gradients[0] is not None
        return gradients[0]


def apart(layers: Sequence[Layer]) -> bool:
    """Whether each sample has statistics of its own."""
    return any(isinstance(layer.norm, InstanceNorm) for layer in layers)


def rows(values: Tensor) -> Tensor:
    """See what a layer puts out as [rows, features]."""
    return values if values.dim() == 2 else conv_compute.rows(values)


def shaped(values: Tensor, like: Tensor) -> Tensor:
    """See rows as what a layer puts out."""
    return values if like.dim() == 2 else conv_compute.images(values, like)


def returned(output: Tensor, input: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Give images the layout that torch.nn's layers would give them."""
    return output if output.dim() == 2 else output.contiguous(memory_format=conv_compute.format_of(input, *weights))


def normalise(
    y: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, groups: int, frozen: tuple[Any, Any] | None
) -> Tensor:
    """Batch norm of y (batch, features, ...) in plain arithmetic, each group by its own or by the frozen statistics."""
    parts = y.float().unflatten(0, (groups, -1))
    over = [at for at in range(parts.dim()) if at not in (0, 2)]
    shape = (1, -1, *(1 for _ in y.shape[2:]))
    if frozen is None:
        var, mean = peers.var_mean(parts, over, keepdim=True)
    else:
        mean, var = (vector.float().view(shape) for vector in frozen)
    out = ((parts - mean) * torch.rsqrt(var + eps)).flatten(0, 1)
    out = out if gamma is None else out * gamma.view(shape)
    return (out if beta is None else out + beta.view(shape)).to(y.dtype)
