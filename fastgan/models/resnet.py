"""Residual networks of SNGAN: Miyato et al., 2018, tables 4 and 5, for square images of 8x8 to 64x64 and beyond."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.errors import UserError
from fastgan.nn import BatchNorm2dAct, Conv2dAct, spectral_norm

SMALLEST = 4  # the side that neither network goes below
Norm = Callable[[int], nn.Module]  # from channels to a batch norm with a ReLU behind it


class UpBlock(nn.Module):
    """A residual block of G that doubles the side: norm, ReLU, up, conv, norm, ReLU, conv; the shortcut up, 1x1."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(in_channels), norm(out_channels)
        self.conv1 = _conv(Conv2dAct(in_channels, out_channels, 3, 1, 1, activation="none", upsample=2), 2.0)
        self.conv2 = _conv(Conv2dAct(out_channels, out_channels, 3, 1, 1, activation="none"), 2.0)
        self.shortcut = _conv(Conv2dAct(in_channels, out_channels, 1, activation="none"), 1.0)

    def forward(self, input: Tensor, *labels: Tensor) -> Tensor:
        """Map ``(n, in_channels, s, s)`` to ``(n, out_channels, 2 s, 2 s)``; labels are the norms' affair."""
        hidden = self.conv1(self.norm1(input, *labels))
        hidden = self.conv2(self.norm2(hidden, *labels))
        # a 1x1 convolution of repeated pixels is their repeated convolution
        short: Tensor = F.interpolate(self.shortcut(input), scale_factor=2)
        return hidden + short


class DownBlock(nn.Module):
    """A residual block of D, spectrally normalised: ReLU, conv, ReLU, conv; both ways halved where it goes ``down``.

    The ``first`` one of a network has no ReLU in front: it sees an image.
    """

    def __init__(self, in_channels: int, out_channels: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, before = down, "none" if first else "relu"
        inside = out_channels if first else in_channels
        conv1 = Conv2dAct(in_channels, inside, 3, 1, 1, activation="relu", pre_activation=before)
        self.conv1 = spectral_norm(_conv(conv1, 2.0))
        self.conv2 = spectral_norm(_conv(Conv2dAct(inside, out_channels, 3, 1, 1, activation="none"), 2.0))
        self.shortcut: nn.Module = nn.Identity()
        if down or in_channels != out_channels:
            self.shortcut = spectral_norm(_conv(Conv2dAct(in_channels, out_channels, 1, activation="none"), 1.0))

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(n, in_channels, s, s)`` to ``(n, out_channels, s, s)``, or half the side."""
        hidden = self.conv2(self.conv1(input))
        if not self.down:
            return hidden + self.shortcut(input)
        # mean and 1x1 convolution commute: this order convolves a quarter of the places
        return F.avg_pool2d(hidden, 2) + self.shortcut(F.avg_pool2d(input, 2))


class ResNetGenerator(nn.Module):
    """z ``(n, z_dim)`` -> images ``(n, channels, size, size)`` in [-1, 1].

    A linear layer makes the smallest side (4, or 5 to 7 where that is what halving leaves), residual blocks of
    ``width`` channels (the paper's 256) double it.
    """

    def __init__(self, z_dim: int, sample_shape: Sequence[int], *, width: int = 256) -> None:
        super().__init__()
        self._build(z_dim, sample_shape, width, lambda channels: BatchNorm2dAct(channels, activation="relu"))

    def _build(self, z_dim: int, sample_shape: Sequence[int], width: int, norm: Norm) -> None:
        channels, size, ups = geometry(sample_shape, width)
        self.smallest = (width, size >> ups, size >> ups)
        self.linear = nn.Linear(z_dim, math.prod(self.smallest))
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.blocks = nn.ModuleList(UpBlock(width, width, norm) for _ in range(ups))
        self.norm = BatchNorm2dAct(width, activation="relu")
        self.image = _conv(Conv2dAct(width, channels, 3, 1, 1, activation="tanh"), 1.0)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to images."""
        return self._draw(z)

    def _draw(self, z: Tensor, *labels: Tensor) -> Tensor:
        hidden = self.linear(z).unflatten(1, self.smallest)
        for block in self.blocks:
            hidden = block(hidden, *labels)
        images: Tensor = self.image(self.norm(hidden))
        return images


class ResNetDiscriminator(nn.Module):
    """Images ``(n, channels, size, size)`` -> logits ``(n,)``: residual blocks, ReLU, a sum over all places, linear.

    The first two of ``blocks`` halve the side, where 4 is left, the others keep it. Every weight is divided by its
    spectral norm; ``width`` is the channels (the paper's 128). Nothing mixes samples.
    """

    def __init__(self, sample_shape: Sequence[int], *, width: int = 128, blocks: int = 4) -> None:
        super().__init__()
        channels, _, halvings = geometry(sample_shape, width)
        if blocks < 1:
            raise UserError(f"resnet's discriminator has a block at least, not {blocks}")
        layers: list[nn.Module] = []
        for level in range(blocks):
            previous = width if level else channels
            layers.append(DownBlock(previous, width, down=level < min(2, halvings), first=level == 0))
        self.blocks = nn.Sequential(*layers)
        linear = nn.Linear(width, 1)
        nn.init.xavier_uniform_(linear.weight)
        self.linear = spectral_norm(linear)

    def forward(self, images: Tensor, groups: int = 1) -> Tensor:
        """Map images to logits; ``groups`` changes nothing but the weights, which one power iteration serves."""
        logits: Tensor = self.linear(self.features(images)).squeeze(1)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Map images to what the last layer reads, ``(n, width)``."""
        return F.relu(self.blocks(images)).sum((2, 3))


def geometry(sample_shape: Sequence[int], width: int) -> tuple[int, int, int]:
    """Channels, side, and how often the side can be halved to no less than SMALLEST."""
    if len(sample_shape) != 3:
        raise UserError(f"resnet draws images (channels, height, width), not samples of shape {tuple(sample_shape)}")
    channels, height, across = sample_shape
    halvings = 0
    while height >> (halvings + 1) >= SMALLEST and not (height >> halvings) % 2:
        halvings += 1
    if height != across or not halvings or height >> halvings >= 2 * SMALLEST:
        raise UserError(
            f"resnet wants square images of 4 to 7 pixels times a power of two (8, 16, 28, 32, 48, ...), not"
            f" {height}x{across}: set image_size or resize the data"
        )
    if width < 1:
        raise UserError(f"resnet's width must be at least 1, not {width}")
    return channels, height, halvings


def _conv(layer: Conv2dAct, gain: float) -> Conv2dAct:
    """A convolution as published: Glorot's uniform weights, in residual branches times sqrt 2; no shift."""
    nn.init.xavier_uniform_(layer.weight, math.sqrt(gain))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
