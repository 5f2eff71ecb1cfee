"""Fully connected networks: Goodfellow et al., 2014, in the form of the widely used PyTorch-GAN ``gan.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastgan.errors import UserError, unknown
from fastgan.nn import Chain, LinearAct, Maxout


class MLPGenerator(nn.Module):
    """z ``(n, z_dim)`` -> samples ``(n, *sample_shape)``, in [-1, 1] where ``output`` is tanh.

    Every hidden layer but the first, and with ``norm_first`` that too, is normalised over the batch where ``norm`` is
    set. ``norm_eps`` is 0.8 in the public code, whose ``BatchNorm1d(n, 0.8)`` meant a momentum. Weights begin as N(0,
    ``init_std``) and biases as 0; where that is 0, as PyTorch's.
    """

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (128, 256, 512, 1024),
        norm: bool = True,
        norm_first: bool = False,
        norm_eps: float = 0.8,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        output: str = "tanh",
        init_std: float = 0.0,
    ) -> None:
        super().__init__()
        _check(hidden)
        self.sample_shape = tuple(sample_shape)
        layers: list[nn.Module] = []
        width = z_dim
        for index, features in enumerate(hidden):
            if norm and (norm_first or index > 0):
                layers += [LinearAct(width, features, activation="none"), nn.BatchNorm1d(features, norm_eps)]
                layers.append(_activation(activation, negative_slope))
            else:
                layers.append(LinearAct(width, features, activation=activation, negative_slope=negative_slope))
            width = features
        layers.append(LinearAct(width, math.prod(self.sample_shape), activation=output))
        self.layers = Chain(*layers)
        _initialise(self, init_std)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to samples."""
        samples: Tensor = self.layers(z)
        return samples.unflatten(1, self.sample_shape)


class MLPDiscriminator(nn.Module):
    """Samples ``(n, *sample_shape)`` -> logits ``(n,)``; the sigmoid is the loss's affair.

    With ``maxout`` each hidden unit is the largest of so many linear functions (Goodfellow et al., 2013), and
    ``activation`` says nothing. Weights begin as N(0, ``init_std``) and biases as 0; where that is 0, as PyTorch's.
    """

    composes = True  # its forward mixes no samples

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (512, 256),
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        maxout: int = 0,
        init_std: float = 0.0,
    ) -> None:
        super().__init__()
        _check(hidden)
        layers: list[nn.Module] = []
        width = math.prod(sample_shape)
        for features in hidden:
            if maxout:
                layers.append(Maxout(width, features, maxout))
            else:
                layers.append(LinearAct(width, features, activation=activation, negative_slope=negative_slope))
            width = features
        layers.append(LinearAct(width, 1, activation="none"))
        self.layers = Chain(*layers)
        _initialise(self, init_std)

    def forward(self, samples: Tensor, groups: int = 1) -> Tensor:
        """Map samples to logits; ``groups`` equal parts of the batch are as many calls, in one pass."""
        logits: Tensor = self.layers(samples.flatten(1), groups)
        return logits.squeeze(1)


def _check(hidden: Sequence[int]) -> None:
    if min(hidden, default=1) < 1:
        raise UserError(f"the widths of hidden layers must be at least 1, not {list(hidden)}")


def _initialise(network: nn.Module, std: float) -> None:
    if not std >= 0:
        raise UserError(f"init_std is a standard deviation of at least 0, not {std:g}")
    for module in network.modules() if std else ():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            nn.init.zeros_(module.bias)


def _activation(name: str, negative_slope: float) -> nn.Module:
    simple = {"none": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
    if name == "leaky_relu":
        return nn.LeakyReLU(negative_slope)
    if name not in simple:
        raise unknown("activation", name, [*simple, "leaky_relu"])
    return simple[name]()
