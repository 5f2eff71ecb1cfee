"""SNGAN's residual networks that are told a class, by norms in G and by projection in D: Miyato and Koyama, 2018."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.models.resnet import ResNetDiscriminator, ResNetGenerator
from fastgan.nn import ConditionalBatchNorm2dAct, spectral_norm


class ConditionalResNetGenerator(ResNetGenerator):
    """z ``(n, z_dim)`` and labels ``(n,)`` -> images in [-1, 1]: the class chooses scale and shift of blocks' norms."""

    def __init__(self, z_dim: int, sample_shape: Sequence[int], num_classes: int, *, width: int = 256) -> None:
        nn.Module.__init__(self)
        self.num_classes = num_classes
        self._build(
            z_dim,
            sample_shape,
            width,
            lambda channels: ConditionalBatchNorm2dAct(channels, num_classes, activation="relu"),
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Map latents and labels to images."""
        return self._draw(z, labels)


class ProjectionResNetDiscriminator(ResNetDiscriminator):
    """Images and labels ``(n,)`` -> logits ``(n,)``: psi(phi(x)) + <embed(y), phi(x)>, Miyato and Koyama's eq. 3."""

    def __init__(self, sample_shape: Sequence[int], num_classes: int, *, width: int = 128, blocks: int = 4) -> None:
        super().__init__(sample_shape, width=width, blocks=blocks)
        self.num_classes = num_classes
        embed = nn.Embedding(num_classes, width)
        nn.init.xavier_uniform_(embed.weight)
        self.embed = spectral_norm(embed)

    def forward(self, images: Tensor, labels: Tensor, groups: int = 1) -> Tensor:  # type: ignore[override]
        """Map images and their labels to logits; ``groups`` as the unconditional network's."""
        features = self.features(images)
        logits: Tensor = self.linear(features).squeeze(1) + (self.embed(labels) * features).sum(1)
        return logits
