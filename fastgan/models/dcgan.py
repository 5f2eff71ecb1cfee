"""Convolutional networks of DCGAN: Radford, Metz and Chintala, 2015, for images of 4x4 times any power of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from fastgan.errors import UserError, unknown
from fastgan.nn import Chain


class DCGANGenerator(nn.Module):
    """z ``(n, z_dim)`` -> images ``(n, channels, size, size)`` in [-1, 1].

    A transposed convolution lifts z to 4x4; each further one (kernel 4, stride 2) doubles the side and halves the
    channels down to ``width``; batch norm and ReLU between, tanh at the end, no bias.

    The paper's tricks (section 3) can be undone one by one: without ``norm`` layers have biases instead, and weights
    begin as He et al., 2015 say; not ``strided``, sides are doubled by repetition in front of a convolution 3x3; with
    ``hidden`` a fully connected layer of so many units stands behind z; ``activation`` is another one.
    """

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        *,
        width: int = 64,
        max_width: int = 1024,
        norm: bool = True,
        strided: bool = True,
        hidden: int = 0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        channels, doublings = geometry(sample_shape)
        up = widths(doublings, width, max_width)[::-1]
        act = _activation(activation, 0.2)
        first = (up or [channels])[0]
        self.flat = bool(hidden)
        layers: list[nn.Module] = []
        if hidden:
            layers += [nn.Linear(z_dim, hidden, not norm), *([nn.BatchNorm1d(hidden)] if norm else []), act()]
            layers += [nn.Linear(hidden, first * 16, not norm), nn.Unflatten(1, (first, 4, 4))]
        else:
            layers.append(nn.ConvTranspose2d(z_dim, first, 4, 1, 0, bias=not norm))
        for features, after in pairwise([*up, channels]):
            layers += [*([nn.BatchNorm2d(features)] if norm else []), act()]
            if strided:
                layers.append(nn.ConvTranspose2d(features, after, 4, 2, 1, bias=not norm))
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(features, after, 3, 1, 1, bias=not norm)]
        self.layers = Chain(*layers, nn.Tanh()).apply(initialise if norm else _by_he)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to images."""
        images: Tensor = self.layers(z if self.flat else z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Images ``(n, channels, size, size)`` -> logits ``(n,)``: G mirrored, LeakyReLU, no norm on the first layer.

    ``norm``, ``strided`` (else convolutions 3x3 with maximum pooling), ``hidden`` (in front of the logit) and
    ``activation`` undo the paper's tricks as in the generator. Critics under a gradient penalty go without ``norm``:
    Gulrajani et al., 2017, section 4.
    """

    composes = True  # its forward mixes no samples; its norms do

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        width: int = 64,
        max_width: int = 1024,
        negative_slope: float = 0.2,
        norm: bool = True,
        strided: bool = True,
        hidden: int = 0,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        layers, features = trunk(
            sample_shape, width, max_width, negative_slope, norm=norm, strided=strided, activation=activation
        )
        act = _activation(activation, negative_slope)
        if hidden:
            layers += [nn.Flatten(), nn.Linear(features * 16, hidden, not norm)]
            layers += [*([nn.BatchNorm1d(hidden)] if norm else []), act(), nn.Linear(hidden, 1, not norm)]
        else:
            layers.append(nn.Conv2d(features, 1, 4, 1, 0, bias=not norm))
        self.layers = Chain(*layers).apply(initialise if norm else _by_he)

    def forward(self, images: Tensor, groups: int = 1) -> Tensor:
        """Map images to logits; ``groups`` equal parts of the batch are normalised apart, as by as many calls."""
        logits: Tensor = self.layers(images, groups)
        return logits.flatten()


def trunk(
    sample_shape: Sequence[int],
    width: int,
    max_width: int,
    negative_slope: float,
    *,
    norm: bool = True,
    strided: bool = True,
    activation: str = "leaky_relu",
) -> tuple[list[nn.Module], int]:
    """The discriminator's layers down to 4x4, and how many channels leave them."""
    channels, doublings = geometry(sample_shape)
    act, kernel = _activation(activation, negative_slope), (4, 2, 1) if strided else (3, 1, 1)
    layers: list[nn.Module] = []
    previous = channels
    for level, features in enumerate(widths(doublings, width, max_width)):
        layers.append(nn.Conv2d(previous, features, *kernel, bias=not norm))
        layers += [*([nn.BatchNorm2d(features)] if norm and level > 0 else []), act()]
        layers += [] if strided else [nn.MaxPool2d(2)]
        previous = features
    return layers, previous


def geometry(sample_shape: Sequence[int]) -> tuple[int, int]:
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


def widths(doublings: int, width: int, max_width: int) -> list[int]:
    """Channels of the hidden layers, from the image's side down to 4x4."""
    if min(width, max_width) < 1:
        raise UserError(f"dcgan's width and max_width must be at least 1, not {width} and {max_width}")
    return [min(width * 2**level, max_width) for level in range(doublings)]


def _activation(name: str, negative_slope: float) -> Callable[[], nn.Module]:
    """What makes an activation of that name."""
    known: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "leaky_relu": partial(nn.LeakyReLU, negative_slope),
        "tanh": nn.Tanh,
    }
    if name not in known:
        raise unknown("activation", name, known)
    return known[name]


def initialise(module: nn.Module) -> None:
    """Weights as published: convolutions N(0, .02), norm scales N(1, .02), shifts 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _by_he(module: nn.Module) -> None:
    """Weights of networks without norms: He et al., 2015, biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
