"""minibatch_std: how much the samples of a group differ, as channels beside theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import UserError


def minibatch_std(input: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    """Return images with channels added that hold the mean standard deviation within a group of samples.

    Karras et al. 2018, "Progressive Growing of GANs", section 3, as StyleGAN2's discriminator does it: sample i is in a
    group with those that many groups apart, of n samples in n / group_size groups.

    Args:
        input: (n, channels, height, width), floating, any strides.
        group_size: samples in a group, n at the most; None: all of the batch.
        num_channels: how many are added, each for an equal share of the channels.

    Returns:
        (n, channels + num_channels, height, width) in the input's dtype. Deviations are sqrt(variance + 1e-8), formed
        in fp32, so that fp16 does not overflow. Gradient order: any.

    Raises:
        UserError: for a batch or channels that do not divide.
    """
    n, channels, height, width = input.shape
    size = n if group_size is None else min(group_size, n)
    if num_channels < 1 or channels % num_channels:
        raise UserError(f"{channels} channels do not come in {num_channels} equal shares: mend num_channels")
    if (group_size is not None and group_size < 1) or (size and n % size):
        raise UserError(f"a batch of {n} does not come in groups of {group_size}: mend the batch or group_size")
    if not input.numel():
        return torch.cat([input, input.new_empty(n, num_channels, height, width)], 1)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    groups = values.reshape(size, n // size, num_channels, channels // num_channels, height, width)
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean([2, 3, 4])  # (groups, num_channels)
    added = deviation.to(input.dtype).repeat(size, 1)[:, :, None, None].expand(n, num_channels, height, width)
    return torch.cat([input, added], 1)
