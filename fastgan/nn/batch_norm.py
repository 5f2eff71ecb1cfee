"""BatchNorm1dAct and BatchNorm2dAct: torch.nn's batch norms with the activation that follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgan.ops.activation import check
from fastgan.ops.batch_norm_act import batch_norm_act


class _BatchNormAct(_BatchNorm):
    """What the batch norms of any dimension share: the activation, and a forward that is one op."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        **more: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **more)
        self.activation = check(activation)
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(batch_norm(input)); in training move the running statistics and count the batch."""
        self._check_input_dim(input)
        moves = self.training and self.track_running_stats
        reads = moves or not self.training
        output = batch_norm_act(
            input,
            self.running_mean if reads else None,
            self.running_var if reads else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            num_batches_tracked=self.num_batches_tracked if moves and self.momentum is None else None,
        )
        if moves and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return output

    def extra_repr(self) -> str:
        """Show the activation behind what torch.nn shows."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"


class BatchNorm1dAct(_BatchNormAct, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` followed by an activation, as one op: same parameters, buffers and ``state_dict``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, and what else this version of PyTorch
            has: as torch.nn.BatchNorm1d. A momentum of None never waits for the device.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Shape: (N, C) or (N, C, L), and out the same. Gradients of any order; see ``fastgan.ops.batch_norm_act``.
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` would put a norm without the activation in its place.

    Raises:
        UserError: for an unknown activation.
        ValueError: for an input of other dimensions, and for one value per channel in training.
    """


class BatchNorm2dAct(_BatchNormAct, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` followed by an activation, as one op: same parameters, buffers and ``state_dict``.

    Args: as ``BatchNorm1dAct``.

    Shape: (N, C, H, W), and out the same, in any layout; channels_last needs no copy. Gradients of any order; see
    ``fastgan.ops.batch_norm_act``. Of ``nn.SyncBatchNorm``, as ``BatchNorm1dAct``.

    Raises: as ``BatchNorm1dAct``.
    """
