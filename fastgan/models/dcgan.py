"""Convolutional networks of DCGAN: Radford, Metz and Chintala, 2015, for images of 4x4 times any power of two."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.nn import Chain


class DCGANGenerator(nn.Module):
    """z ``(n, z_dim)`` -> images ``(n, channels, size, size)`` in [-1, 1].

    A transposed convolution lifts z to 4x4; each further one (kernel 4, stride 2) doubles the side and halves the
    channels down to ``width``; batch norm and ReLU between, tanh at the end, no bias.
    """

    def __init__(self, z_dim: int, sample_shape: Sequence[int], *, width: int = 64, max_width: int = 1024) -> None:
        super().__init__()
        channels, doublings = _geometry(sample_shape)
        widths = _widths(doublings, width, max_width)[::-1]
        layers: list[nn.Module] = []
        previous, stride, padding = z_dim, 1, 0
        for features in widths:
            layers.append(nn.ConvTranspose2d(previous, features, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
            previous, stride, padding = features, 2, 1
        layers += [nn.ConvTranspose2d(previous, channels, 4, stride, padding, bias=False), nn.Tanh()]
        self.layers = Chain(*layers).apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to images."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Images ``(n, channels, size, size)`` -> logits ``(n,)``: G mirrored, LeakyReLU, no norm on the first layer."""

    composes = True  # its forward mixes no samples; its norms do

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        width: int = 64,
        max_width: int = 1024,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        channels, doublings = _geometry(sample_shape)
        widths = _widths(doublings, width, max_width)
        layers: list[nn.Module] = []
        previous = channels
        for level, features in enumerate(widths):
            layers.append(nn.Conv2d(previous, features, 4, 2, 1, bias=False))
            if level > 0:
                layers.append(nn.BatchNorm2d(features))
            layers.append(nn.LeakyReLU(negative_slope))
            previous = features
        layers.append(nn.Conv2d(previous, 1, 4, 1, 0, bias=False))
        self.layers = Chain(*layers).apply(_initialise)

    def forward(self, images: Tensor, groups: int = 1) -> Tensor:
        """Map images to logits; ``groups`` equal parts of the batch are normalised apart, as by as many calls."""
        logits: Tensor = self.layers(images, groups)
        return logits.flatten()


def _geometry(sample_shape: Sequence[int]) -> tuple[int, int]:
    """Channels, and how many times 4x4 is doubled to reach the image's side."""
    if len(sample_shape) != 3:
        raise UserError(
            f"dcgan draws images (channels, height, width), not samples of shape {tuple(sample_shape)}: use mlp"
        )
    channels, height, width = sample_shape
    doublings = (height // 4).bit_length() - 1
    if height != width or height < 4 or 4 * 2**doublings != height:
        raise UserError(
            f"dcgan wants square images of 4x4 times a power of two (4, 8, 16, 32, 64, ...), not {height}x{width}:"
            " set image_size or resize the data"
        )
    return channels, doublings


def _widths(doublings: int, width: int, max_width: int) -> list[int]:
    """Channels of the hidden layers, from the image's side down to 4x4."""
    if min(width, max_width) < 1:
        raise UserError(f"dcgan's width and max_width must be at least 1, not {width} and {max_width}")
    return [min(width * 2**level, max_width) for level in range(doublings)]


def _initialise(module: nn.Module) -> None:
    """Weights as published: convolutions N(0, .02), norm scales N(1, .02), shifts 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
