"""ConditionalBatchNorm2dAct: a batch norm whose scale and shift a class chooses, and the activation behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.ops.activation import check
from fastgan.ops.conditional_batch_norm_act import conditional_batch_norm_act


def conditioned(
    bn: nn.BatchNorm1d | nn.BatchNorm2d,
    input: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: str = "none",
    negative_slope: float = 0.0,
) -> Tensor:
    """Normalise as ``bn`` does, which has no vectors of its own, then scale and shift each sample, and activate."""
    bn._check_input_dim(input)
    moves = bn.training and bn.track_running_stats
    reads = moves or not bn.training
    output = conditional_batch_norm_act(
        input,
        scale,
        shift,
        bn.running_mean if reads else None,
        bn.running_var if reads else None,
        bn.training or (bn.running_mean is None and bn.running_var is None),
        0.0 if bn.momentum is None else bn.momentum,
        bn.eps,
        activation=activation,
        negative_slope=negative_slope,
        num_batches_tracked=bn.num_batches_tracked if moves and bn.momentum is None else None,
    )
    if moves and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    return output


class ConditionalBatchNorm2dAct(nn.Module):
    """Normalise by the batch, scale and shift by what the sample's class says, and activate: as one op.

    De Vries et al. 2017, "Modulating early visual processing by language"; in GANs since Dumoulin et al. 2017 and
    Miyato & Koyama 2018. ``state_dict`` has the names of the module that people copy from pytorch/pytorch issue 8985:
    ``bn.running_mean``, ``bn.running_var``, ``bn.num_batches_tracked`` and ``embed.weight`` (num_classes,
    2 num_features), scales first. Hooks on ``bn`` are not called: its buffers and settings are what is used of it.

    Args:
        num_features: channels.
        num_classes: rows of the embedding.
        eps, momentum, track_running_stats, device, dtype: as torch.nn.BatchNorm2d.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Scales are 1 and shifts 0 at the beginning, of all classes.

    Shape: (N, C, H, W) and integer labels (N), and out as the images, in any layout; channels_last needs no copy.
    Gradients of any order; see ``fastgan.ops.conditional_batch_norm_act``.

    Raises:
        UserError: for an unknown activation.
        ValueError: for images of other dimensions, and for one value per channel in training.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, eps, momentum, False, track_running_stats, device, dtype)
        self.embed = nn.Embedding(num_classes, 2 * num_features, device=device, dtype=dtype)
        self.activation = check(activation)
        self.negative_slope = negative_slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to 1, all shifts to 0, and forget the running statistics."""
        self.bn.reset_parameters()
        nn.init.zeros_(self.embed.weight)
        nn.init.ones_(self.embed.weight[:, : self.bn.num_features])

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        """Return the normalised and activated images; in training move the running statistics and count the batch."""
        scale, shift = self.embed(labels).chunk(2, 1)
        return conditioned(self.bn, input, scale, shift, self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        """Show the activation."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation}{slope}"
