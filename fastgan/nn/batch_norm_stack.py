"""BatchNorm1dActStack: several batch norms of one size, each over its own batch, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.ops.activation import check
from fastgan.ops.batch_norm_act import batch_norm_act


class BatchNorm1dActStack(nn.Module):
    """The norms of several members, and the activation behind them, as one batch norm of members x channels.

    Parameters and buffers are those of torch.nn.BatchNorm1d with the members first: ``weight`` (members, channels),
    ``num_batches_tracked`` (members). Built by :meth:`of`.

    Shape: (members, n, channels), and out the same. Gradients of any order; see ``fastgan.ops.batch_norm_act``.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layers: Sequence[nn.BatchNorm1d], activation: str = "none", negative_slope: float = 0.2) -> None:
        super().__init__()
        first = layers[0]
        if len({(n.num_features, n.eps, n.momentum) for n in layers}) > 1:
            raise UserError("batch norms of one size, eps and momentum can be stacked")
        if not first.affine or not first.track_running_stats or first.momentum is None:
            raise UserError("batch norms can be stacked that have weights, running statistics and a momentum")
        self.members, self.num_features = len(layers), first.num_features
        self.eps, self.momentum = first.eps, first.momentum
        self.activation, self.negative_slope = check(activation), negative_slope
        for name in ("weight", "bias"):
            stacked = torch.stack([getattr(layer, name).detach() for layer in layers])
            self.register_parameter(name, nn.Parameter(stacked))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([getattr(layer, name) for layer in layers]))

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(batch_norm(input)), each member by its own batch; move the running statistics."""
        rows = input.transpose(0, 1).flatten(1)  # (n, members * channels)
        output = batch_norm_act(
            rows,
            self.running_mean.flatten(),  # views: what is written there is written here
            self.running_var.flatten(),
            self.weight.flatten(),
            self.bias.flatten(),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )
        if self.training:
            self.num_batches_tracked.add_(1)
        return output.unflatten(1, (self.members, self.num_features)).transpose(0, 1)

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn.BatchNorm1d does, the members first."""
        sizes = f"{self.members} x {self.num_features}, eps={self.eps}, momentum={self.momentum}"
        return f"{sizes}, activation={self.activation}"
