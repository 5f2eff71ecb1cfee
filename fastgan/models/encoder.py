"""What a variational autoencoder infers latents with: Kingma and Welling, 2014, appendix C.2."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.models.layers import linear_layers


class Encoder(nn.Module):
    """Samples ``(n, *sample_shape)`` -> ``(n, 2 z_dim)``: mean and log variance of q(z|x), fully connected.

    ``std`` is that of p(x|z), a normal law about what the decoder makes of z: the decoder is any generator, which has
    no place for it.
    """

    composes = True  # its forward mixes no samples

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 128),
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        std: float = 0.3,
    ) -> None:
        super().__init__()
        if not std > 0:
            raise UserError(f"the standard deviation of p(x|z) has to be above 0, not {std:g}")
        self.std = std
        self.layers = linear_layers(math.prod(sample_shape), hidden, 2 * z_dim, activation, negative_slope)

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples to mean and log variance, the means first."""
        law: Tensor = self.layers(samples.flatten(1))
        return law
