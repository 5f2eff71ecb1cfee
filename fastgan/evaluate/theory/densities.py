"""Densities on the line with everything known about them, and integrals by quadrature. All of it in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = torch.linspace(-30, 30, 12001, dtype=torch.float64)  # smooth densities in its middle: errors near rounding


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal densities: ``means``, ``stds`` and ``weights``, the latter summing to 1."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...] = (1.0,)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), of x's shape."""
        means, stds, weights = self._parts()
        scaled = (x[..., None] - means) / stds
        return torch.logsumexp(weights.log() - scaled.square() / 2 - stds.log() - math.log(2 * math.pi) / 2, dim=-1)

    def density(self, x: Tensor) -> Tensor:
        """p(x), of x's shape."""
        return self.log_density(x).exp()

    def cumulative(self, x: Tensor) -> Tensor:
        """P(X <= x), of x's shape."""
        means, stds, weights = self._parts()
        return (weights * torch.special.ndtr((x[..., None] - means) / stds)).sum(-1)

    def quantiles(self, n: int) -> Tensor:
        """``n`` points that share the mass equally: a plain mean over them is a quadrature of the expectation."""
        mass = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        low, high = LINE[:1].expand(n).clone(), LINE[-1:].expand(n).clone()
        for _ in range(60):  # bisection, down to rounding
            middle = (low + high) / 2
            below = self.cumulative(middle) < mass
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Independent draws of the given shape."""
        means, stds, weights = self._parts()
        which = torch.multinomial(weights, math.prod(shape), replacement=True, generator=generator)
        noise = torch.randn(math.prod(shape), dtype=torch.float64, generator=generator)
        return (means[which] + stds[which] * noise).view(shape)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds, self.weights))
        return means, stds, weights


def normal(mean: float = 0.0, std: float = 1.0) -> Mixture:
    """The normal density."""
    return Mixture((mean,), (std,))


def integral(values: Tensor, line: Tensor = LINE) -> Tensor:
    """The integral of a function given by its ``values`` on a line of points (trapezoid rule)."""
    return torch.trapezoid(values, line)


def entropy(p: Tensor, line: Tensor = LINE) -> Tensor:
    """-E log p of a density given on a line, in nats; 0 log 0 is 0. Differentiable."""
    return -integral(p * p.clamp_min(1e-300).log(), line)


def kullback_leibler(log_p: Tensor, log_q: Tensor, line: Tensor = LINE) -> Tensor:
    """KL(p || q) = E_p log(p / q) of two log densities on a line, in nats. Differentiable in both."""
    return integral(log_p.exp() * (log_p - log_q), line)


def jensen_shannon(log_p: Tensor, log_q: Tensor, line: Tensor = LINE) -> Tensor:
    """JSD(p, q), the mean of both KLs to (p + q) / 2, of two log densities on a line: 0 ... log 2. Differentiable."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kullback_leibler(log_p, log_m, line) + kullback_leibler(log_q, log_m, line)) / 2


def jensen_shannon_by_entropy(p: Tensor, q: Tensor, line: Tensor = LINE) -> Tensor:
    """JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 of two densities on a line, which may be 0. Differentiable."""
    return entropy((p + q) / 2, line) - (entropy(p, line) + entropy(q, line)) / 2


def wasserstein(p: Tensor, q: Tensor, line: Tensor) -> Tensor:
    """W1(p, q), the area between the cumulative distributions, of two densities on a line of even steps."""
    step = line[1] - line[0]
    return ((p - q).cumsum(0) * step).abs().sum() * step


def sorted_distance(x: Tensor, y: Tensor) -> Tensor:
    """W1 of two samples ``(n,)`` of one size on the line: who is sorted is matched best."""
    return (x.sort().values - y.sort().values).abs().mean()
