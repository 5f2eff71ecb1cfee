"""`ring8` and `grid25`: the two mixtures of Gaussians in the plane on which mode collapse is counted.

Ring: 8 modes on a circle of radius 1, sigma .01. Grid: 25 modes at {-4, -2, 0, 2, 4} squared, sigma .05. 100,000
samples (Srivastava et al. 2017, VEEGAN; Lin et al. 2018, PacGAN, appendix B).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.data.dataset import Dataset, Modes

SAMPLES = 100_000
_SEEDS = {"train": 8125, "test": 8126}


def _ring() -> Tensor:
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def _grid() -> Tensor:
    axis = torch.arange(-4.0, 5.0, 2.0)
    return torch.cartesian_prod(axis, axis)


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Draw the samples, (100000, 2) float32, the same at every call; the label of a sample is the mode it came from."""
    modes = Modes(_ring(), 0.01) if name == "ring8" else Modes(_grid(), 0.05)
    generator = torch.Generator().manual_seed(_SEEDS[split])
    labels = torch.randint(len(modes.centres), (SAMPLES,), generator=generator)
    points = modes.centres[labels] + modes.sigma * torch.randn(SAMPLES, 2, generator=generator)
    return Dataset(
        name=name,
        images=points,
        labels=labels,
        classes=tuple(map(str, range(len(modes.centres)))),
        license="none needed: drawn by this program",
        source="a mixture of Gaussians, drawn with a fixed seed",
        modes=modes,
    )
