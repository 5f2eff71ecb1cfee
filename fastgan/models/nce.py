"""What noise-contrastive estimation compares: fixed noise, and a density that need not integrate to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.models.layers import linear_layers

MARGIN = 0.1  # of the data's range: by so much the box of uniform noise goes beyond it


class Noise(nn.Module):
    """z ``(n, ratio * d)`` -> noise ``(n * ratio, d)``, ``loc + scale z``: it learns nothing, ``fit`` sets it.

    Normal latents make a normal law with the data's mean and covariance, uniform ones in [-1, 1] a box about the data.
    """

    loc: Tensor
    scale: Tensor  # lower triangle
    inverse: Tensor  # of scale

    def __init__(self, z_dim: int, sample_shape: Sequence[int]) -> None:
        super().__init__()
        size = points(sample_shape)
        if z_dim % size:
            raise UserError(
                f"nce makes noise of {size} numbers a sample from z_dim {z_dim}: take a multiple of {size}, as many"
                " times as there are to be noise samples for each of the data"
            )
        self.ratio, self.kind = z_dim // size, "normal"
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.eye(size))
        self.register_buffer("inverse", torch.eye(size))

    def forward(self, z: Tensor) -> Tensor:
        """Map latents to noise."""
        return self.loc + times(self.scale, z.reshape(-1, len(self.loc)))

    @torch.no_grad()
    def fit(self, data: Tensor, kind: str, sigma: float = 0.0) -> None:
        """Have the noise lie where ``data`` ``(n, d)`` do, with normal noise of ``sigma`` on them."""
        wide = data.double()
        self.kind = kind
        if kind == "normal":
            covariance = torch.atleast_2d(torch.cov(wide.T)) + sigma**2 * torch.eye(wide.shape[1]).to(wide)
            scale, failed = torch.linalg.cholesky_ex(covariance)
            if bool(failed):
                raise UserError("nce wants data that vary in every direction: some column follows from the others")
            self._set(wide.mean(0), scale)
            return
        low, high = wide.amin(0) - 4 * sigma, wide.amax(0) + 4 * sigma
        half = (high - low) * (0.5 + MARGIN)
        if not bool((half > 0).all()):
            raise UserError("nce wants data that vary in every direction: some column has one value")
        self._set((low + high) / 2, torch.diag(half))

    def _set(self, loc: Tensor, scale: Tensor) -> None:
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.inverse.copy_(scale.inverse())

    def log_density(self, points: Tensor) -> Tensor:
        """Log density of the noise at ``(n, d)``, in float32; that of a box as if it had no end."""
        size = len(self.loc)
        volume = self.scale.diagonal().log().sum()
        if self.kind != "normal":
            return (-volume - size * math.log(2)).expand(len(points))
        z = times(self.inverse, points.float() - self.loc)
        return -z.square().sum(1) / 2 - volume - size / 2 * math.log(2 * math.pi)


class LogDensity(nn.Module):
    """Points ``(n, d)`` -> log p(x) ``(n,)`` = f(x) - |A (x - m)|^2 / 2 + c; nothing makes p integrate to 1.

    ``A``, ``m`` and ``c`` are parameters, f is a fully connected network, or nothing where ``hidden`` is empty: then p
    is normal. The square has p fall off far from the data whatever f is. c is minus the log of the partition function:
    Gutmann and Hyvarinen, 2010, section 2.1.
    """

    composes = True  # its forward mixes no samples

    def __init__(
        self,
        sample_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128, 128),
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        size = points(sample_shape)
        self.A, self.m = nn.Parameter(torch.eye(size)), nn.Parameter(torch.zeros(size))
        self.c = nn.Parameter(torch.zeros(()))
        self.layers = linear_layers(size, hidden, 1, activation, negative_slope) if hidden else None

    def forward(self, points: Tensor) -> Tensor:
        """Map points to log densities."""
        log_density = self.c - times(self.A, points.float() - self.m).square().sum(1) / 2
        return log_density if self.layers is None else log_density + self.layers(points).squeeze(1)


def times(matrix: Tensor, points: Tensor) -> Tensor:
    """The matrix ``(d, d)`` times each of ``(n, d)``, in float32 under autocast too: d is small."""
    return (points.unsqueeze(1) * matrix).sum(2)


def points(sample_shape: Sequence[int]) -> int:
    """How many numbers a sample has. Raises UserError for images."""
    if len(sample_shape) != 1:
        raise UserError(f"nce estimates densities of points (n, d), not of samples of shape {tuple(sample_shape)}")
    return sample_shape[0]
