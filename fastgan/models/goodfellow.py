"""The networks of the first GAN on MNIST: Goodfellow et al., 2014, by the authors' ``mnist.yaml``.

Within, samples lie in [0, 1], as there; outside in [-1, 1], as everywhere here: the step between is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct, Maxout

ROWS = 4096  # of the data that are averaged at a time
LEAST = 1e-7  # of a mean pixel, and of what it lacks to 1: its logit is finite


class GoodfellowGenerator(nn.Module):
    """z ``(n, z_dim)`` -> samples ``(n, *sample_shape)`` in [-1, 1]: ReLU layers and a sigmoid.

    z is multiplied by ``latent_scale``: latents uniform in [-1, 1] become those of the paper, U(-sqrt 3, sqrt 3), of
    variance 1. Weights begin as U(-``init``, ``init``), biases as 0, but the last one's as the data's marginals say:
    ``prepare``.
    """

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (1200, 1200),
        latent_scale: float = math.sqrt(3),
        init: float = 0.05,
    ) -> None:
        super().__init__()
        widths = z_dim, *_checked(hidden)
        self.sample_shape, self.latent_scale = tuple(sample_shape), latent_scale
        size = math.prod(self.sample_shape)
        layers = [LinearAct(before, after, activation="relu") for before, after in pairwise(widths)]
        self.layers = Chain(*layers, LinearAct(widths[-1], size, activation="sigmoid"))
        _initialise(self, init)

    @torch.no_grad()
    def prepare(self, samples: Tensor) -> None:
        """Set the last bias to the logit of each pixel's mean over ``samples``: uint8, or floats in [-1, 1]."""
        total = torch.zeros(samples[0].numel(), dtype=torch.float64, device=samples.device)
        for part in samples.split(ROWS):
            values = part.flatten(1).double()
            total += (values / 255 if part.dtype == torch.uint8 else (values + 1) / 2).sum(0)
        last = self.layers[-1]
        assert isinstance(last, LinearAct) and last.bias is not None
        last.bias.copy_(torch.logit(total / len(samples), eps=LEAST))

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to samples."""
        pixels: Tensor = self.layers(z * self.latent_scale)
        return (pixels * 2 - 1).unflatten(1, self.sample_shape)


class GoodfellowDiscriminator(nn.Module):
    """Samples ``(n, *sample_shape)`` in [-1, 1] -> logits ``(n,)``: maxout layers, with dropout before each layer.

    ``hidden`` are units, each the largest of ``pieces`` linear functions (Goodfellow et al., 2013). Of the input
    ``input_dropout`` is dropped, of each hidden layer ``dropout``. Weights begin as U(-``init``, ``init``).
    """

    composes = True  # its forward mixes no samples

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (240, 240),
        pieces: int = 5,
        input_dropout: float = 0.2,
        dropout: float = 0.5,
        init: float = 0.005,
    ) -> None:
        super().__init__()
        if not (0 <= input_dropout < 1 and 0 <= dropout < 1):
            raise UserError(f"input_dropout {input_dropout:g} and dropout {dropout:g} go from 0 to below 1")
        layers: list[nn.Module] = []
        width, drop = math.prod(sample_shape), input_dropout
        for units in _checked(hidden):
            layers += [nn.Dropout(drop), Maxout(width, units, pieces)]
            width, drop = units, dropout
        self.layers = Chain(*layers, nn.Dropout(drop), LinearAct(width, 1, activation="none"))
        _initialise(self, init)

    def forward(self, samples: Tensor, groups: int = 1) -> Tensor:
        """Map samples to logits; ``groups`` equal parts of the batch are as many calls, in one pass."""
        logits: Tensor = self.layers((samples.flatten(1) + 1) / 2, groups)
        return logits.squeeze(1)


def _checked(hidden: Sequence[int]) -> tuple[int, ...]:
    if min(hidden, default=1) < 1:
        raise UserError(f"the widths of hidden layers must be at least 1, not {list(hidden)}")
    return tuple(hidden)


def _initialise(network: nn.Module, bound: float) -> None:
    """Weights U(-bound, bound), biases 0: pylearn2's ``irange``."""
    if not bound >= 0:
        raise UserError(f"init is a bound of at least 0, not {bound:g}")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
