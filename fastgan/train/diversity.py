"""How varied a batch of generated samples is beside a batch of real ones: on the device, in a few launches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops import peers

PROJECTIONS = 16
SMALLEST = 1e-12  # spread that counts as one: data that never vary have no diversity to compare with


class Diversity:
    """Compares batches by their spread along fixed random directions, the same in every run.

    The standard deviation of a batch along each direction, fake by real, averaged over the directions: about 1 where
    the generator varies as the data do, near 0 where it makes one sample. It does not see which modes are missing as
    long as those that are there lie far apart.
    """

    def __init__(self, sample_shape: Sequence[int], device: torch.device) -> None:
        self._size = size = math.prod(sample_shape)
        random = torch.Generator().manual_seed(0)
        self._directions = torch.randn(size, PROJECTIONS, generator=random).to(device)

    @torch.no_grad()
    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of two batches (n, *sample_shape), n at least 2, a scalar in float32."""
        of_real, of_fake = (self._spread(samples) for samples in (real, fake))
        return (of_fake / of_real.clamp_min(SMALLEST)).mean()

    def _spread(self, samples: Tensor) -> Tensor:
        own = samples.flatten(1)[:, : self._size]  # without the condition that may stand behind
        return peers.var_mean(own.float() @ self._directions, [0])[0].sqrt()
