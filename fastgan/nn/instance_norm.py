"""InstanceNorm1dAct and InstanceNorm2dAct: torch.nn's instance norms with the activation that follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from fastgan.ops.activation import check
from fastgan.ops.instance_norm_act import instance_norm_act


class _InstanceNormAct(_InstanceNorm):
    """What the instance norms of any dimension share: the activation, and a computation that is one op."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
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

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm_act(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def extra_repr(self) -> str:
        """Show the activation behind what torch.nn shows."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"


class InstanceNorm1dAct(_InstanceNormAct, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` followed by an activation, as one op: same parameters, buffers and ``state_dict``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, and what else this version of PyTorch
            has: as torch.nn.InstanceNorm1d.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Shape: (N, C, L) or (C, L), and out the same. Gradients of any order; see ``fastgan.ops.instance_norm_act``.

    Raises:
        UserError: for an unknown activation.
        ValueError: for an input of other dimensions or channels, and for one position a sample.
    """


class InstanceNorm2dAct(_InstanceNormAct, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` followed by an activation, as one op: same parameters, buffers and ``state_dict``.

    Args: as ``InstanceNorm1dAct``.

    Shape: (N, C, H, W) or (C, H, W), and out the same, in any layout; channels_last needs no copy. Gradients of any
    order; see ``fastgan.ops.instance_norm_act``.

    Raises: as ``InstanceNorm1dAct``.
    """
