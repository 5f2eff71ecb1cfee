"""Frechet distance between the features of data and of samples: FID where the features are Inception's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.data import Dataset
from fastgan.errors import UserError, require
from fastgan.evaluate.extractors import pair
from fastgan.evaluate.metric import Result, Subject, needs_images

CHEAP = True
REFERENCE = "Heusel et al., 2017, section 4 (eq. 6); computed by torchmetrics"


class AsGiven(nn.Identity):
    """What torchmetrics takes for its network, where features are at hand already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(real: Tensor, fake: Tensor) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of features (n, k) and (m, k), in float64.

    mu and S are mean and covariance (n - 1). Biased upwards for few samples. Raises UserError without torchmetrics, or
    with fewer than two features of a side.
    """
    if min(len(real), len(fake)) < 2:
        raise UserError("the Frechet distance takes at least 2 samples of a side: give a larger --n")
    module = require("torchmetrics.image.fid", extra="eval", why="fid")
    metric = module.FrechetInceptionDistance(feature=AsGiven(real.shape[1])).set_dtype(torch.float64)
    centre = real.double().mean(0)  # the distance does not change, and torchmetrics' sums of squares lose no digits
    metric.update(real.double() - centre, real=True)
    metric.update(fake.double() - centre, real=False)
    return float(metric.compute())


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None, features: str | None = None) -> Result:
    """Measure it between ``n`` samples and as many training images; ``features`` names the extractor."""
    real, fake, said = pair(subject, n, features)
    note = "; not comparable with published FID, whose features are Inception's, nor with another number of samples"
    if len(real) <= real.shape[1]:
        note += "; no more samples than features: far too large, give a larger --n"
    return Result("fid", {"fid": frechet(real, fake)}, said + note, reference=REFERENCE)
