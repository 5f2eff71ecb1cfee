"""Networks of an auxiliary classifier GAN: Odena, Olah and Shlens, 2017; its generator is DCGAN's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.models.cdcgan import ConditionalDCGANGenerator
from fastgan.models.dcgan import geometry, initialise, widths
from fastgan.nn import Chain


class ACGANGenerator(ConditionalDCGANGenerator):
    """z ``(n, z_dim)`` and labels ``(n,)`` -> images in [-1, 1]."""


class ACGANDiscriminator(nn.Module):
    """Images ``(n, channels, size, size)`` -> logits ``(n,)`` and class logits ``(n, num_classes)``, by two heads.

    It is not told the labels, it guesses them. Appendix A, table 2: pairs of 3x3 convolutions, the first of which
    halves the side, down to 4x4; channels double at each from ``width`` on; batch norm on all but the first,
    leaky ReLU, dropout.
    """

    classifies = True

    def __init__(
        self,
        sample_shape: Sequence[int],
        num_classes: int,
        *,
        width: int = 16,
        max_width: int = 512,
        negative_slope: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        previous, doublings = geometry(sample_shape)
        layers: list[nn.Module] = []
        for level, features in enumerate(widths(2 * doublings, width, max_width)):
            layers.append(nn.Conv2d(previous, features, 3, 2 - level % 2, 1, bias=False))
            layers += [nn.BatchNorm2d(features)] if level else []
            layers += [nn.LeakyReLU(negative_slope), nn.Dropout(dropout)]
            previous = features
        self.num_classes = num_classes
        self.layers = Chain(*layers, nn.Flatten()).apply(initialise)
        self.real = nn.Linear(16 * previous, 1)
        self.kind = nn.Linear(16 * previous, num_classes)

    def forward(self, images: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """Map images to logits and class logits; ``groups`` equal parts of the batch are normalised apart."""
        features = self.layers(images, groups)
        return self.real(features).squeeze(1), self.kind(features)
