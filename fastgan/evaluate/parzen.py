"""Log-likelihood of held-out images under a Parzen window: a normal around each sample, its width by validation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.metric import Result, Subject, needs_images

CHEAP = False  # on mnist: 10,000 samples against 10,000 images
SAMPLES = 10_000
SIGMAS = torch.logspace(-1, 0, 10, dtype=torch.float64)  # the authors' parzen_ll.py
VALIDATION = 1000  # images that choose sigma
CHUNK = 500  # images at a time: so many rows of distances
REFERENCE = "Goodfellow et al., 2014, section 5 and table 1; protocol of the authors' parzen_ll.py"
PUBLISHED = {"mnist": "225 +- 2 (Goodfellow et al., 2014, table 1)"}


@dataclass(frozen=True)
class Window:
    """A choice of sigma and what it gives.

    Attributes:
        sigma: of the widths the one with the largest mean on the validation images.
        mean: mean log-likelihood of the test images, in nats.
        error: standard deviation of the log-likelihoods / sqrt(n).
    """

    sigma: float
    mean: float
    error: float


def log_likelihoods(images: Tensor, samples: Tensor, sigmas: Tensor) -> Tensor:
    """log p(x) of images (m, d) under (1/n) sum_i N(x; samples_i, sigma^2 I), samples (n, d): (sigmas, m) float64."""
    images, samples = images.double(), samples.double()
    n, size = samples.shape
    norms = samples.square().sum(1)
    parts = []
    for part in images.split(CHUNK):
        squares = torch.addmm(norms, part, samples.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        peak = squares.amin(1)  # logsumexp by hand: for all widths the nearest sample weighs most
        squares.sub_(peak[:, None])
        row = [(squares / (-2 * sigma**2)).exp_().sum(1).log() - peak / (2 * sigma**2) for sigma in sigmas]
        parts.append(torch.stack(row))
    constant = math.log(n) + size * (sigmas.double().log() + 0.5 * math.log(2 * math.pi))
    return torch.cat(parts, 1) - constant[:, None]


def window(samples: Tensor, validation: Tensor, test: Tensor, sigmas: Tensor = SIGMAS) -> Window:
    """Choose sigma by validation images (v, d) and judge test images (t, d) by it; all pixels in [0, 1]."""
    best = int(log_likelihoods(validation, samples, sigmas).mean(1).argmax())
    found = log_likelihoods(test, samples, sigmas[best : best + 1])[0]
    return Window(float(sigmas[best]), float(found.mean()), float(found.std(correction=0)) / len(found) ** 0.5)


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    if len(dataset.sample_shape) == 3 and dataset.sample_shape[0] != 1:
        return f"it compares grey images, and {dataset.name} has {dataset.sample_shape[0]} channels"
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None, oracle: bool = False) -> Result:
    """Measure it with ``n`` samples, 10,000 as published; ``oracle``: with the first ``n`` training images instead."""
    data, rest, held_out = subject.data, subject.rest, subject.held_out()
    first = len(data) if rest else len(data) * 5 // 6  # of mnist: 50,000, as published
    most = SAMPLES if not oracle else min(SAMPLES, first)
    n = n or most
    if oracle and n > first:
        raise UserError(f"the first {first} images may stand for samples, the others validate: --n {first} or fewer")
    others = rest or data.part(first)
    if len(others) < 2:
        raise UserError(f"{data.name} has too few images to choose a width by: {len(data)}")
    validating = min(VALIDATION, len(others) // 2 if held_out is None else len(others))
    samples = _rows(data, 0, n) if oracle else _unit(subject.sample(n))
    if held_out is None:
        test = _rows(others, validating, len(others))
        judged = f"train[{first + validating}:{first + len(others)}]"
        judged += " (not trained on)" if rest else " (trained on as well: there is no test split)"
    else:
        test, judged = _rows(held_out, 0, len(held_out)), f"the test split ({len(held_out)})"
    found = window(samples, _rows(others, 0, validating), test)
    origin = f"train[:{n}] of {data.name} in place of samples" if oracle else f"{n} samples ({subject.origin})"
    return Result(
        "parzen",
        {"log-likelihood": found.mean, "standard error": found.error, "sigma": found.sigma},
        f"{origin}; sigma of 10 in [0.1, 1] by train[{first}:{first + validating}]; mean over {judged}; pixels in"
        " [0, 1], nats",
        reference=REFERENCE,
        published=PUBLISHED.get(data.name, "") if n == SAMPLES and data.sample_shape == (1, 28, 28) else "",
    )


def _unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] as rows of pixels in [0, 1], float64."""
    return images.flatten(1).double().add(1).div(2)


def _rows(data: Dataset, first: int, last: int) -> Tensor:
    return _unit(data.batch(torch.arange(first, last)).cpu())
