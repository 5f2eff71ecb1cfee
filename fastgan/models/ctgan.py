"""Networks for tables of mixed columns: Xu et al., 2019, "Modeling Tabular Data using Conditional GAN", section 4.4."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.errors import UserError
from fastgan.nn import Chain

Spans = Sequence[tuple[int, int, str]]  # start, stop, and what these numbers of a row are: alpha or onehot


class CTGANGenerator(nn.Module):
    """z ``(n, z_dim)`` -> rows ``(n, d)`` as a table's points: each alpha by tanh, each one-hot by Gumbel-softmax.

    Each hidden layer is normalised over the batch, and what went into it goes on beside its output. Where a row has
    categories and it is ``conditional``, one of them, ``conditions`` in all, is told as a one-hot behind z (section
    4.3). In training, z ``(n, z_dim + conditions)`` becomes rows with the condition behind them, and, second, how far
    they miss it: the cross-entropy of the logits of the column that was told. In evaluation a condition that is not
    given is drawn: a column, then a category by its share in ``shares``. That and Gumbel's noise come from torch's
    global generator.
    """

    random = True  # its samples do not follow from z alone
    shares: Tensor

    def __init__(
        self,
        z_dim: int,
        sample_shape: Sequence[int],
        spans: Spans,
        *,
        hidden: Sequence[int] = (256, 256),
        tau: float = 0.2,
        conditional: bool = True,
    ) -> None:
        super().__init__()
        _check(hidden)
        if not tau > 0:
            raise UserError(f"tau, the temperature of one-hots, must be above 0, not {tau:g}")
        self.z_dim, self.tau, self.spans = z_dim, tau, [(start, stop, what) for start, stop, what in spans]
        behind_alpha = [False, *(what == "alpha" for *_, what in self.spans)]  # the mode of a number
        self.categories = [
            (start, stop)
            for (start, stop, what), mode in zip(self.spans, behind_alpha, strict=False)
            if conditional and what == "onehot" and not mode
        ]
        self.conditions = sum(stop - start for start, stop in self.categories)
        width = z_dim + self.conditions
        layers: list[nn.Module] = []
        for features in hidden:
            layers.append(Concatenated(width, features))
            width += features
        layers.append(nn.Linear(width, math.prod(sample_shape)))
        self.layers = nn.Sequential(*layers)
        sizes = [stop - start for start, stop in self.categories]
        even = [1 / size / len(sizes) for size in sizes for _ in range(size)]
        self.register_buffer("shares", torch.tensor(even))

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map latents, with conditions behind them or without, to rows."""
        if self.conditions and z.shape[1] == self.z_dim:
            z = torch.cat((z, self._drawn(len(z)).to(z.dtype)), 1)
        logits = self.layers(z).float()
        rows = self._rows(logits)
        if not self.conditions or not self.training:
            return rows
        told = z[:, self.z_dim :].float()
        return torch.cat((rows, told), 1), self._missed(logits, told)

    def _rows(self, logits: Tensor) -> Tensor:
        least = torch.finfo(torch.float32).tiny  # an exponential number may be 0, whose logarithm is infinite
        perturbed = (logits - torch.empty_like(logits).exponential_().clamp_min(least).log()) / self.tau
        parts = [
            logits[:, start:stop].tanh() if what == "alpha" else perturbed[:, start:stop].softmax(1)
            for start, stop, what in self.spans
        ]
        return torch.cat(parts, 1)

    def _missed(self, logits: Tensor, told: Tensor) -> Tensor:
        """The generator's loss in section 4.3: the mean over rows of the cross-entropy at the column that was told."""
        logs = torch.cat([logits[:, start:stop].log_softmax(1) for start, stop in self.categories], 1)
        return -(logs * told).sum(1).mean()

    def _drawn(self, n: int) -> Tensor:
        """Conditions (n, conditions) as often as the table has them."""
        ends = self.shares.cumsum(0)
        at = torch.searchsorted(ends, torch.rand(n, device=ends.device) * ends[-1], right=True)
        return F.one_hot(at.clamp_max(self.conditions - 1), self.conditions)


class Concatenated(nn.Module):
    """x ``(n, i)`` -> ``(n, o + i)``: a linear layer with batch norm and ReLU, and x behind it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = Chain(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Put the layers' output before their input."""
        made = self.layers(x)
        return torch.cat((made, x.to(made.dtype)), 1)


class CTGANDiscriminator(nn.Module):
    """Rows, packs of them or other samples ``(n, *sample_shape)`` -> logits ``(n,)``: LeakyReLU and dropout."""

    composes = True  # its forward mixes no samples

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.5,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        _check(hidden)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a share from 0 to below 1, not {dropout:g}")
        layers: list[nn.Module] = []
        width = math.prod(sample_shape)
        for features in hidden:
            layers += [nn.Linear(width, features), nn.LeakyReLU(negative_slope)]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = features
        self.layers = Chain(*layers, nn.Linear(width, 1))

    def forward(self, samples: Tensor, groups: int = 1) -> Tensor:
        """Map samples to logits; ``groups`` equal parts of the batch are as many calls, in one pass."""
        logits: Tensor = self.layers(samples.flatten(1), groups)
        return logits.squeeze(1)


def _check(hidden: Sequence[int]) -> None:
    if min(hidden, default=1) < 1:
        raise UserError(f"the widths of hidden layers must be at least 1, not {list(hidden)}")
