"""Nearest neighbours among the training data: whether samples lie nearer to them than fresh data would."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data.dataset import normalise

CHUNK = 4096  # training samples that are held in float at a time
QUANTILE = 0.01  # of fresh data: what lies below it counts as a copy


@dataclass(frozen=True)
class Neighbours:
    """The nearest training samples of each query, nearest first.

    Attributes:
        distance: ``(n, k)`` float32, Euclidean.
        index: ``(n, k)`` int64, into the training data.
    """

    distance: Tensor
    index: Tensor

    @property
    def ratio(self) -> Tensor:
        """Distance to the nearest over that to the second: ``(n,)``; 0 for a copy of a sample, 1 for a mere average."""
        return self.distance[:, 0] / self.distance[:, 1].clamp_min(1e-12)

    def without_first(self) -> Neighbours:
        """The same with the nearest left out: of training samples themselves, who are their own nearest."""
        return Neighbours(self.distance[:, 1:], self.index[:, 1:])


def nearest(queries: Tensor, training: Tensor, k: int = 2, prepare: torch.nn.Module | None = None) -> Neighbours:
    """Find the ``k`` nearest of ``training`` for each query, in float32.

    Args:
        queries: Samples ``(n, ...)``, float in [-1, 1].
        training: Samples ``(m, ...)`` of that shape, m at least k; uint8 pixels are normalised as they are taken.
        k: How many.
        prepare: Maps both to the space in which distances are taken; None for the samples' own.
    """

    def flat(samples: Tensor) -> Tensor:
        samples = normalise(samples) if samples.dtype == torch.uint8 else samples.float()
        return (samples if prepare is None else prepare(samples)).flatten(1)

    rows = flat(queries)
    best = torch.full((len(rows), k), math.inf)
    index = torch.zeros((len(rows), k), dtype=torch.int64)
    for start in range(0, len(training), CHUNK):
        part = flat(training[start : start + CHUNK])
        distances = torch.cdist(rows, part)
        near, at = distances.topk(min(k, len(part)), largest=False)
        both = torch.cat([best, near], 1)
        best, order = both.topk(k, largest=False)
        index = torch.cat([index, at + start], 1).gather(1, order)
    # the product by which cdist takes distances cancels near 0, where copies are told: those found are taken anew
    exact = torch.stack([(rows - flat(training[index[:, j]])).norm(dim=1) for j in range(k)], 1)
    exact, order = exact.sort(1)
    return Neighbours(exact, index.gather(1, order))


@dataclass(frozen=True)
class Copying:
    """How near to the training data samples lie, beside fresh data.

    Attributes:
        copied: Share of samples that are likelier copies than all but 1% of fresh data: 0.01 where nothing is copied.
        nearer: Chance that a sample lies nearer to the training data than a fresh one: 0.5 where it is fresh itself.
        z: The same as a standard normal under "samples are as fresh": below -3, nearer than chance; above 3, farther.
    """

    copied: float
    nearer: float
    z: float

    @property
    def told(self) -> str:
        """What it comes to, in words."""
        if self.copied > 0.1:
            return "samples are copies of training data"
        if self.z < -3:
            return "samples lie nearer to the training data than fresh data do"
        return "samples are not copied from the training data"


def copying(samples: Neighbours, fresh: Neighbours) -> Copying:
    """Compare samples with fresh data by their distances to the same training data.

    ``nearer`` and ``z`` are the rank-sum test of Meehan, Chaudhuri and Dasgupta, 2020, section 3, with all of space as
    one cell (z is their Z_U). As blurred samples lie near to everything, what counts as a copy is judged by the ratio
    of the nearest distance to the second nearest; images that the data have twice are no measure for that.
    """
    ours, theirs = samples.distance[:, 0].contiguous(), fresh.distance[:, 0].contiguous()
    n, m = len(ours), len(theirs)
    sorted_theirs = theirs.sort().values
    below = torch.searchsorted(sorted_theirs, ours, right=False)  # fresh ones that lie nearer
    up_to = torch.searchsorted(sorted_theirs, ours, right=True)
    farther = float((below + up_to).double().sum()) / 2  # pairs in which the sample lies farther, ties half
    z = (farther - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    apart = fresh.ratio[theirs > 0].double()
    bound = float(torch.quantile(apart, QUANTILE)) if len(apart) else 0.0
    copied = (samples.ratio < bound) | (ours == 0)
    return Copying(float(copied.double().mean()), 1 - farther / (n * m), z)
