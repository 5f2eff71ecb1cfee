"""Diversity: how alike samples are, beside how alike real data are, and whether they are copies of training data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.metric import Draw, Result, Subject, chosen, needs_images
from fastgan.evaluate.neighbours import QUANTILE, Neighbours, copying, nearest
from fastgan.evaluate.sheet import Row, sheet
from fastgan.evaluate.similarity import LEAST_SIDE, name_for, similarity

CHEAP = True
SAMPLES = 1000
SHOWN = 8  # samples in the picture
NEIGHBOURS = 5  # beside each
CHUNK = 64  # pairs of images at a time
REFERENCE = (
    "Odena et al., 2017 (AC-GAN), section 4.2 (similarity); Meehan et al., 2020, section 3 (copying); "
    "Wang et al., 2003 and 2004 (MS-SSIM, SSIM)"
)


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def alikeness(images: Tensor) -> tuple[float, float]:
    """Mean (MS-)SSIM of the pairs 0 and 1, 2 and 3, ... of images ``(n, C, H, W)``, n at least 4, with its error."""
    pairs = zip(images[0::2].split(CHUNK), images[1::2].split(CHUNK), strict=False)
    values = torch.cat([similarity(first[: len(second)], second) for first, second in pairs]).double()
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def measure(subject: Subject, n: int | None = None) -> Result:
    """Compare ``n`` samples, 1,000 by default, with real images."""
    n = n or SAMPLES
    data = subject.data
    if n < 4 or len(data) < NEIGHBOURS + 1:
        raise UserError(f"diversity takes at least 4 samples and {NEIGHBOURS + 1} training images: give a larger --n")
    samples, random = subject.sample(n).float(), subject.random()
    real = chosen(data, min(n, len(data)), random)
    real = real[torch.randperm(len(real), generator=random)]  # pairs of data that lie sorted would be of one class
    made, of_data = alikeness(samples), alikeness(real)
    training = data.images.cpu()
    near = nearest(samples, training, NEIGHBOURS)
    held_out = subject.held_out()
    if held_out is None:
        count, which = len(real), "training images themselves, each beside the others"
        fresh = nearest(real, training, NEIGHBOURS + 1).without_first()
    else:
        count, which = min(n, len(held_out)), f"images of {held_out.name}'s test split"
        fresh = nearest(chosen(held_out, count, random), training, NEIGHBOURS)
    copies = copying(near, fresh)
    measured = name_for(min(samples.shape[2:]))
    less = "" if made[0] < of_data[0] + 3 * (made[1] ** 2 + of_data[1] ** 2) ** 0.5 else "; less varied than the data"
    small = "" if measured == "MS-SSIM" else f" (MS-SSIM takes sides of {LEAST_SIDE})"
    return Result(
        "diversity",
        {
            f"{measured} of pairs, samples": made[0],
            f"{measured} of pairs, data": of_data[0],
            "standard error, samples": made[1],
            "standard error, data": of_data[1],
            "copies %": 100 * copies.copied,
            "nearer than fresh data %": 100 * copies.nearer,
            "Z of farther than fresh data": copies.z,
        },
        f"{n} samples ({subject.origin}); {measured}{small} of {n // 2} pairs; distances of pixels to {len(data)}"
        f" training images; fresh data: {count} {which}; a copy: nearest / second nearest distance below that of all"
        f" but {QUANTILE:.0%} of fresh data, so {QUANTILE:.0%} where nothing is copied; nearer: 50 % where samples are"
        " fresh",
        {"neighbours.png": _picture(samples, near, data)},
        REFERENCE,
        reading=copies.told + less,
    )


def _picture(samples: Tensor, near: Neighbours, data: Dataset) -> Draw:
    """The likeliest copies, each beside its nearest training images."""
    worst = near.ratio.argsort()[:SHOWN]

    def draw(path: Any) -> None:
        rows = []
        for at in worst.tolist():
            beside = data.batch(near.index[at]).cpu()
            words = ["sample", *(f"{distance:.2f}" for distance in near.distance[at].tolist())]
            rows.append(Row(f"ratio {float(near.ratio[at]):.2f}", torch.cat([samples[at : at + 1], beside]), words))
        title = "the likeliest copies, and their nearest training images"
        sheet(rows, title, marked=1).savefig(path, format="png")

    return draw
