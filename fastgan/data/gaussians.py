"""A mixture of Gaussians for one column of numbers: expectation maximisation without a random number in it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mode = tuple[float, float, float]  # mean, standard deviation, weight

MOST_MODES = 10
LEAST_WEIGHT = 0.005  # modes below it go, as in CTGAN
POINTS = 1024  # that stand for a longer column
STEPS = 100
NARROWEST = 1e-3  # of the column's standard deviation: a value that many rows share would be infinitely likely
_PATIENCE = 1  # numbers of modes in a row that may fail to help


def fit(values: Floats, most: int = MOST_MODES) -> tuple[Mode, ...]:
    """Return the modes of a column, by mean: as many, up to ``most``, as the Bayesian information criterion pays for.

    The values are finite, at least one of them. Long columns are fitted by ``POINTS`` means of their sorted values.
    """
    values = np.sort(values)
    centre, scale = float(values.mean()), float(values.std())
    if not scale > 1e-12 * abs(centre):
        return ((centre, max(1e-6 * abs(centre), 1e-6), 1.0),)
    points, counts = _condensed((values - centre) / scale)
    best: tuple[Mode, ...] = ()
    least, failures = math.inf, 0
    for k in range(1, min(most, len(points)) + 1):
        tries = [_climbed(points, counts, _start(points, counts, k, evenly)) for evenly in (False, True)[: min(k, 2)]]
        likelihood, modes = max(tries)
        criterion = (3 * k - 1) * math.log(len(values)) - 2 * likelihood
        failures = 0 if criterion < least else failures + 1
        if criterion < least:
            best, least = modes, criterion
        if failures > _PATIENCE:
            break
    kept = [mode for mode in best if mode[2] >= LEAST_WEIGHT]
    total = sum(weight for *_, weight in kept)
    return tuple(sorted((centre + scale * mean, scale * sigma, weight / total) for mean, sigma, weight in kept))


def densities(values: Floats, modes: tuple[Mode, ...]) -> Floats:
    """Return log(weight * density) of each value under each mode, (n, modes)."""
    means, sigmas, weights = np.asarray(modes, np.float64).T
    standard = (values[:, None] - means) / sigmas
    return np.log(weights / sigmas) - 0.5 * (standard * standard + math.log(2 * math.pi))


def _condensed(ordered: Floats) -> tuple[Floats, Floats]:
    """Distinct values and how often each is there; where they are many, means of equal parts of the column."""
    points, counts = np.unique(ordered, return_counts=True)
    if len(points) <= POINTS:
        return points, counts.astype(np.float64)
    parts = np.array_split(ordered, POINTS)
    return np.array([part.mean() for part in parts]), np.array([float(len(part)) for part in parts])


def _start(points: Floats, counts: Floats, k: int, evenly: bool) -> tuple[Mode, ...]:
    """Centres at even places of the range, or of the sorted values."""
    places = (np.arange(k) + 0.5) / k
    if evenly:
        centres = points[0] + places * (points[-1] - points[0])
    else:
        centres = points[np.searchsorted(np.cumsum(counts), places * counts.sum()).clip(0, len(points) - 1)]
    return tuple((float(centre), 1.0 / k, 1.0 / k) for centre in centres)


def _climbed(points: Floats, counts: Floats, modes: tuple[Mode, ...]) -> tuple[float, tuple[Mode, ...]]:
    """The log-likelihood and the modes after at most ``STEPS`` steps uphill."""
    likelihood = -math.inf
    for _ in range(STEPS):
        logs = densities(points, modes)
        top = logs.max(axis=1, keepdims=True)
        shares = np.exp(logs - top)
        sums = shares.sum(axis=1, keepdims=True)
        now = float(counts @ (top + np.log(sums))[:, 0])
        if now - likelihood <= 1e-7 * abs(now):
            break
        likelihood = now
        shares *= counts[:, None] / sums
        held = shares.sum(axis=0) + 1e-12
        means = points @ shares / held
        spread = ((points[:, None] - means) ** 2 * shares).sum(axis=0) / held
        sigmas = np.sqrt(spread).clip(NARROWEST)
        modes = tuple(zip(means.tolist(), sigmas.tolist(), (held / held.sum()).tolist(), strict=True))
    return likelihood, modes
