"""Samples in packs, which the discriminator judges as one: Lin et al., 2018, PacGAN, section 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def packed(samples: Tensor, pac: int) -> Tensor:
    """Concatenate each ``pac`` samples that follow each other along their features, or channels.

    Points (n, d) become (n / pac, pac * d), images (n, C, H, W) become (n / pac, pac * C, H, W), in their layout.
    """
    if pac == 1:
        return samples
    packs = samples.unflatten(0, (-1, pac))
    if samples.dim() == 4 and not samples.is_contiguous() and samples.is_contiguous(memory_format=torch.channels_last):
        return packs.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)  # one copy, and channels last again
    return packs.flatten(1, 2)


def packed_shape(sample_shape: Sequence[int], pac: int) -> tuple[int, ...]:
    """The shape of a pack."""
    first, *rest = sample_shape
    return pac * first, *rest
