"""Precision and recall, density and coverage: whether samples lie among the data, and the data among the samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.extractors import pair
from fastgan.evaluate.metric import Result, Subject, needs_images

CHEAP = True
NEAREST = 5  # k of Naeem et al.; Kynkaanniemi et al. take 3
SLACK = 1e-9  # of a mean square: who lies on the edge of a ball, its centre's duplicate too, is in it despite rounding
CHUNK = 1024  # rows of distances at a time
REFERENCE = (
    "Kynkaanniemi et al., 2019, section 2 (precision, recall); Naeem et al., 2020, section 3 (density, coverage)"
)


@dataclass(frozen=True)
class Neighbourhoods:
    """Four numbers about two sets of features, where each point of a set has a ball up to its k-th nearest of the set.

    Attributes:
        precision: share of samples that lie in a ball of the data.
        recall: share of data that lie in a ball of the samples.
        density: mean number of balls of the data that a sample lies in, divided by k; may exceed 1.
        coverage: share of balls of the data in which a sample lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of each of points (n, d) to its k-th nearest among the others, k < n: (n,)."""
    parts = []
    for first in range(0, len(points), CHUNK):
        distance = _squares(points[first : first + CHUNK], points)
        distance.diagonal(first).fill_(torch.inf)  # no point is its own neighbour
        parts.append(distance.kthvalue(k, 1).values)
    return torch.cat(parts)


def neighbourhoods(real: Tensor, fake: Tensor, k: int = NEAREST) -> Neighbourhoods:
    """Compare features (n, d) of data with those (m, d) of samples, in float64. Raises UserError for k or fewer."""
    if min(len(real), len(fake)) <= k:
        raise UserError(f"precision and recall take more than {k} samples of a side: give a larger --n")
    centre = real.double().mean(0)
    real, fake = real.double() - centre, fake.double() - centre
    slack = SLACK * float(real.square().sum(1).mean() + fake.square().sum(1).mean())
    of_real, of_fake = (radii(points, k) + slack for points in (real, fake))
    inside = torch.zeros(len(fake), dtype=torch.int64)
    recalled, covered = [], []
    for part, radius in zip(real.split(CHUNK), of_real.split(CHUNK), strict=True):
        distance = _squares(part, fake)
        within = distance <= radius[:, None]
        inside += within.sum(0)
        covered.append(within.any(1))
        recalled.append((distance <= of_fake).any(1))
    return Neighbourhoods(
        precision=float((inside > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(inside.double().mean()) / k,
        coverage=float(torch.cat(covered).double().mean()),
    )


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None, features: str | None = None) -> Result:
    """Measure all four between ``n`` samples and as many training images; ``features`` names the extractor."""
    real, fake, said = pair(subject, n, features)
    found = neighbourhoods(real, fake)
    values = {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}
    return Result("precision-recall", values, f"{said}, k = {NEAREST}", reference=REFERENCE)


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of points (n, d) and (m, d): (n, m)."""
    lengths = first.square().sum(1, keepdim=True) + second.square().sum(1)
    return lengths.addmm_(first, second.T, alpha=-2)
