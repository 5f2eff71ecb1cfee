"""Modes of stacked digits: how many of the 1,000 three-digit numbers a generator makes, and how evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan import data
from fastgan.data import Dataset
from fastgan.evaluate.classifier import Classifier, load_classifier
from fastgan.evaluate.metric import Result, Subject, chosen

CHEAP = False  # 26,000 samples, and a classifier that may have to be trained
SAMPLES = 26_000  # Lin et al., 2018, section 4.2
PREFIX = "stacked-"
REFERENCE = "Metz et al., 2017 (Unrolled GAN), section 3.3.1; Lin et al., 2018 (PacGAN), section 4.2"
PUBLISHED = {
    "stacked-mnist": "DCGAN 99.0 modes, KL 3.40 (78.9, 4.50 when repeated); PacDCGAN2 1000, 0.06 (PacGAN, section 4.2)",
}


@dataclass(frozen=True)
class Spread:
    """How samples spread over the modes.

    Attributes:
        modes: how many have at least one sample.
        kl: KL(samples || uniform) in nats: 0 where all are equally frequent, log(modes there are) where one is alone.
    """

    modes: float
    kl: float


def spread(numbers: Tensor, modes: int) -> Spread:
    """How the modes of samples, ``(n,)`` integers below ``modes``, spread."""
    counts = torch.bincount(numbers, minlength=modes).double()
    share = counts / counts.sum()
    return Spread(int((counts > 0).sum()), float(torch.special.xlogy(share, share * modes).sum()))


def expected(shares: Tensor, n: int) -> Spread:
    """The mean `Spread` of ``n`` independent draws from modes with these ``(modes,)`` shares, without simulation.

    Each count is binomial, so both are sums over modes. What the best of generators reaches is this, not KL 0.
    """
    p = shares.double().unsqueeze(1)
    mean = n * float(p.max())
    most = min(n, round(mean + 12 * math.sqrt(mean) + 40))  # no count comes beyond, but for less than rounding
    k = torch.arange(most + 1, dtype=torch.float64)
    weight = torch.special.xlogy(k, k / n * len(shares)) / n  # what k samples in one mode add to KL
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    kl = 0.0
    for part in p.split(50):  # so many modes at a time
        chance = (ways + torch.special.xlogy(k, part) + torch.special.xlog1py(n - k, -part)).exp()
        kl += float((chance * weight).sum())
    return Spread(float((1 - (1 - p) ** n).sum()), kl)


def numbers_in(images: Tensor, judge: Classifier) -> Tensor:
    """The number that each image ``(n, 3, H, W)`` shows, its first channel the hundreds: ``(n,)`` int64."""
    digits = judge.predict(images.flatten(0, 1).unsqueeze(1)).view(len(images), 3)
    base = len(judge.classes)
    return (digits[:, 0] * base + digits[:, 1]) * base + digits[:, 2]


def suits(dataset: Dataset) -> str | None:
    """Why the modes of ``dataset`` are not counted so; None where they are."""
    if dataset.name.startswith(PREFIX) and dataset.sample_shape[0] == 3:
        return None
    return f"it counts three digits in one image, as stacked-mnist has them, and not {dataset.name}"


def measure(subject: Subject, n: int | None = None) -> Result:
    """Count modes over ``n`` samples, 26,000 as published."""
    n = n or SAMPLES
    base = subject.data.name.removeprefix(PREFIX)
    judge = load_classifier(base, subject.data.path)
    modes = len(judge.classes) ** 3
    made = spread(numbers_in(subject.sample(n), judge), modes)
    count = min(n, len(subject.data))
    real = spread(numbers_in(chosen(subject.data, count, subject.random()), judge), modes)
    perfect = expected(_shares(base, subject.data.path), n)
    return Result(
        "stacked-mnist",
        {
            "modes covered": made.modes,
            "modes": modes,
            "KL to uniform": made.kl,
            "modes covered, of a perfect generator": perfect.modes,
            "KL to uniform, of a perfect generator": perfect.kl,
            "modes covered, real data": real.modes,
            "KL to uniform, real data": real.kl,
        },
        f"{n} samples ({subject.origin}) and {count} real images, each channel named by {judge};"
        f" KL(samples || uniform) in nats; a perfect generator: what {n} independent draws with the digits' frequencies"
        " give on average",
        reference=REFERENCE,
        published=PUBLISHED.get(subject.data.name, "") if n == SAMPLES else "",
    )


def _shares(base: str, path: str | None) -> Tensor:
    """Frequencies of the numbers where three digits are drawn independently from the data set ``base``."""
    labels = data.load(base if path is None else f"{base}:{path}").labels
    assert labels is not None
    digits = torch.bincount(labels).double() / len(labels)
    return (digits.view(-1, 1, 1) * digits.view(1, -1, 1) * digits.view(1, 1, -1)).flatten()
