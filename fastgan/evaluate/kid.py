"""Squared maximum mean discrepancy between the features of data and of samples: KID where these are Inception's."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError, require
from fastgan.evaluate.extractors import pair
from fastgan.evaluate.fid import AsGiven
from fastgan.evaluate.metric import Result, Subject, needs_images

CHEAP = True
SUBSETS, SUBSET = 100, 1000  # the authors' choice
REFERENCE = "Binkowski et al., 2018, section 4; computed by torchmetrics"


def discrepancy(real: Tensor, fake: Tensor, seed: int = 0, subset: int = SUBSET) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / k + 1)^3 of features (n, k) and (m, k), in float64.

    Returns its mean and standard deviation over 100 subsets of ``subset`` samples, drawn by ``seed``; where no side has
    more, there is one, and its deviation is NaN. Nothing is multiplied by 1,000. It is 0 in the mean for samples of one
    law, and below 0 about as often as above. Raises UserError without torchmetrics, or with fewer than two features of
    a side.
    """
    subset = min(subset, len(real), len(fake))
    if subset < 2:
        raise UserError("kid takes at least 2 samples of a side: give a larger --n")
    module = require("torchmetrics.image.kid", extra="eval", why="kid")
    network = AsGiven(real.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features in buffer")  # that is meant
        subsets = SUBSETS if subset < max(len(real), len(fake)) else 1
        metric = module.KernelInceptionDistance(feature=network, subsets=subsets, subset_size=subset)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws its subsets from the global generator
        torch.default_generator.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation) if subsets > 1 else math.nan


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None, features: str | None = None) -> Result:
    """Measure it between ``n`` samples and as many training images; ``features`` names the extractor."""
    real, fake, said = pair(subject, n, features)
    mean, deviation = discrepancy(real, fake, subject.seed)
    values = {"kid": mean}
    if math.isfinite(deviation):
        values["deviation over subsets"] = deviation
        said += f"; {SUBSETS} subsets of {SUBSET}"
    said += "; as it is, not times 1,000; not comparable with KID on Inception's features, which are smaller"
    return Result("kid", values, said, reference=REFERENCE)
