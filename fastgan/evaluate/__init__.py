"""What a system is worth, and the theory behind it checked by numbers: takes arrays or a sampler.

A metric is a module of this floor: pure functions of arrays, and ``suits`` and ``measure`` for ``fastgan evaluate``.
"""

from __future__ import annotations

import importlib
import inspect
from typing import cast

from fastgan.errors import unknown
from fastgan.evaluate.metric import Metric, Result, Subject

__all__ = ["METRICS", "Metric", "Result", "Subject", "metric", "options_of"]

METRICS = {  # name -> what it is; its module has the same name
    "modes": "modes of a mixture that are covered, share of good samples, reverse KL (PacGAN, VEEGAN)",
    "fid": "Frechet distance of normals fitted to features (Heusel et al., 2017)",
    "kid": "squared maximum mean discrepancy of features, unbiased (Binkowski et al., 2018)",
    "precision-recall": "precision, recall, density, coverage by nearest neighbours of features",
    "swd": "sliced Wasserstein distance of patches, scale by scale (Karras et al., 2018)",
    "parzen": "log-likelihood of held-out images under a Parzen window (Goodfellow et al., 2014)",
    "stacked-mnist": "three-digit numbers covered, of 1,000, and KL to uniform (Unrolled GAN, PacGAN)",
    "classes": "share of samples that show the class that was told, by a classifier of the data",
    "table": "rows of a table beside the data's: each column, each pair of columns, copies",
    "diversity": "how alike samples are beside data (MS-SSIM), and whether they are copies of training data",
    "interpolation": "samples from one latent to another: jumps, and whether the latent matters",
    "adversarial": "how little moves an image across a classifier's or the discriminator's boundary (FGSM, L-BFGS)",
}


def metric(name: str) -> Metric:
    """The metric called ``name``. Raises UserError with the nearest name where there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return cast(Metric, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def options_of(name: str) -> set[str]:
    """The keywords that ``measure`` of a metric takes beside the subject and the number of samples."""
    return set(inspect.signature(metric(name).measure).parameters) - {"subject", "n"}
