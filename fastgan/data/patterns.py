"""`patterns8`: eight patterns, each as often, that three independent binary causes would tell apart.

A pattern is a unit vector: each of its 8 numbers follows from the others, and no three of them tell all. The uniformly
distributed, locally coded patterns of Schmidhuber, 1992, with three code units where two were.
"""

from __future__ import annotations

import torch

from fastgan.data.dataset import Dataset
from fastgan.errors import UserError

PATTERNS, EACH = 8, 512


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Make the samples, (4096, 8) float32; the label of a sample is its pattern."""
    if split != "train":
        raise UserError(f"the data set {name!r} has no {split} split: use split='train'")
    labels = torch.arange(PATTERNS).repeat(EACH)
    return Dataset(
        name=name,
        images=torch.eye(PATTERNS)[labels],
        labels=labels,
        classes=tuple(map(str, range(PATTERNS))),
        license="none needed: made by this program",
        source="the unit vectors of eight dimensions",
    )
