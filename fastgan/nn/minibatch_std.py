"""Minibatch standard deviation as a layer, near the end of a discriminator."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.ops.minibatch_std import minibatch_std


class MinibatchStdLayer(nn.Module):
    """Adds channels that say how much the samples of a group differ. It has no parameters.

    Args:
        group_size: samples in a group, the batch at the most; None: all of the batch.
        num_channels: how many channels are added, each for an equal share of the input's.

    Shape: (N, C, H, W) -> (N, C + num_channels, H, W). Gradients of any order; see ``fastgan.ops.minibatch_std``.

    Raises:
        UserError: for a batch or channels that do not divide.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the images with the channels added."""
        return minibatch_std(x, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
