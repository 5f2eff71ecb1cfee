"""Fully connected networks that are told a class: Mirza and Osindero, 2014, in the form of PyTorch-GAN's cgan.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.nn import Chain, ConcatLinearAct, Embedded, LinearAct


class CGANGenerator(nn.Module):
    """z ``(n, z_dim)`` and labels ``(n,)`` -> samples ``(n, *sample_shape)``, in [-1, 1] where ``output`` is tanh.

    The label's embedding, of ``num_classes`` numbers, stands beside z. Every hidden layer but the first is normalised.
    """

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        num_classes: int,
        *,
        hidden: Sequence[int] = (128, 256, 512, 1024),
        norm_eps: float = 1e-5,
        output: str = "tanh",
    ) -> None:
        super().__init__()
        first, *rest = _checked(hidden)
        self.num_classes, self.sample_shape = num_classes, tuple(sample_shape)
        self.embed = nn.Embedding(num_classes, num_classes)
        self.first = ConcatLinearAct((z_dim, num_classes), first)
        layers: list[nn.Module] = []
        for features in rest:
            layers += [LinearAct(first, features, activation="none"), nn.BatchNorm1d(features, norm_eps)]
            layers.append(nn.LeakyReLU(0.2))
            first = features
        self.layers = Chain(*layers, LinearAct(first, math.prod(self.sample_shape), activation=output))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Map latents and labels to samples."""
        samples: Tensor = self.layers(self.first(z, Embedded(labels, self.embed.weight)))
        return samples.unflatten(1, self.sample_shape)


class CGANDiscriminator(nn.Module):
    """Samples ``(n, *sample_shape)`` and labels ``(n,)`` -> logits ``(n,)``: the label's embedding beside the sample.

    Hidden layers but the first drop outputs in training, before their activation.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        num_classes: int,
        *,
        hidden: Sequence[int] = (512, 512, 512),
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        first, *rest = _checked(hidden)
        self.num_classes = num_classes
        self.embed = nn.Embedding(num_classes, num_classes)
        self.first = ConcatLinearAct((math.prod(sample_shape), num_classes), first)
        layers: list[nn.Module] = []
        for features in rest:
            layers.append(LinearAct(first, features, dropout=dropout, dropout_first=True))
            first = features
        self.layers = Chain(*layers, LinearAct(first, 1, activation="none"))

    def forward(self, samples: Tensor, labels: Tensor, groups: int = 1) -> Tensor:
        """Map samples and their labels to logits; ``groups`` equal parts of the batch are as many calls."""
        lifted = self.first(samples.flatten(1), Embedded(labels, self.embed.weight))
        logits: Tensor = self.layers(lifted, groups)
        return logits.squeeze(1)


def _checked(hidden: Sequence[int]) -> Sequence[int]:
    if min(hidden, default=0) < 1:
        raise UserError(f"cgan has a hidden layer at least, each of a width of at least 1, not {list(hidden)}")
    return hidden
