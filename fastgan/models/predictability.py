"""Predictability minimization: an encoder of data into codes, and predictors of each unit from the others.

Schmidhuber, 1992, "Learning factorial codes by predictability minimization", Neural Computation 4(6), 863-879.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.models.layers import linear_layers
from fastgan.nn import LinearActStack


class Coder(nn.Module):
    """Samples ``(n, *sample_shape)`` -> codes ``(n, z_dim)`` in (0, 1), fully connected."""

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (),
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        if z_dim < 2:
            raise UserError(f"a code unit is predicted from the others: set z_dim to 2 or more, not {z_dim}")
        self.layers = linear_layers(math.prod(sample_shape), hidden, z_dim, activation, negative_slope, "sigmoid")

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples to codes."""
        codes: Tensor = self.layers(samples.flatten(1))
        return codes


class Predictors(nn.Module):
    """Codes ``(n, z_dim)`` -> what each unit is expected to be, given the others, ``(n, z_dim)`` in (0, 1).

    One network for each unit, all in one stack; each sees the code with its own unit set to 0.
    """

    others: Tensor

    def __init__(
        self,
        z_dim: int,
        *,
        hidden: Sequence[int] = (32,),
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        if min(hidden, default=1) < 1:
            raise UserError(f"the widths of hidden layers must be at least 1, not {list(hidden)}")
        widths = [z_dim, *hidden]
        layers = [
            LinearActStack(z_dim, before, after, activation=activation, negative_slope=negative_slope)
            for before, after in itertools.pairwise(widths)
        ]
        self.layers = nn.Sequential(*layers, LinearActStack(z_dim, widths[-1], 1, activation="sigmoid"))
        self.register_buffer("others", (1 - torch.eye(z_dim)).unsqueeze(1), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes to predictions."""
        predicted: Tensor = self.layers(codes * self.others.to(codes))
        return predicted.squeeze(2).T
