"""DCGAN's networks that are told a class: beside z in G; in D by projection, Miyato and Koyama, 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.models.dcgan import DCGANGenerator, initialise, trunk
from fastgan.nn import Chain


class ConditionalDCGANGenerator(DCGANGenerator):
    """z ``(n, z_dim)`` and labels ``(n,)`` -> images in [-1, 1]: the label's embedding stands beside z."""

    def __init__(
        self, z_dim: int, sample_shape: Sequence[int], num_classes: int, *, width: int = 64, max_width: int = 1024
    ) -> None:
        super().__init__(z_dim + num_classes, sample_shape, width=width, max_width=max_width)
        self.num_classes = num_classes
        self.embed = nn.Embedding(num_classes, num_classes)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Map latents and labels to images."""
        return super().forward(torch.cat((z, self.embed(labels)), 1))


class ProjectionDCGANDiscriminator(nn.Module):
    """Images ``(n, channels, size, size)`` and labels ``(n,)`` -> logits ``(n,)``: psi(phi(x)) + <embed(y), phi(x)>.

    phi are DCGAN's features, summed over the 4x4 places; psi is linear. Eq. 3 of "cGANs with Projection Discriminator".
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 64,
        max_width: int = 1024,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        layers, features = trunk(sample_shape, width, max_width, negative_slope)
        self.num_classes = num_classes
        self.layers = Chain(*layers).apply(initialise)
        self.linear = nn.Linear(features, 1)
        self.embed = nn.Embedding(num_classes, features)
        nn.init.xavier_uniform_(self.embed.weight)

    def forward(self, images: Tensor, labels: Tensor, groups: int = 1) -> Tensor:
        """Map images and their labels to logits; ``groups`` equal parts of the batch are normalised apart."""
        features = self.layers(images, groups).sum((2, 3))
        logits: Tensor = self.linear(features).squeeze(1) + (self.embed(labels) * features).sum(1)
        return logits
