"""What a metric is given, a sampler with its data, and what it returns: numbers with their protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastgan.data import Dataset
from fastgan.data.table import Table
from fastgan.errors import UserError

Draw = Callable[[Path], None]
SLACK = 1e-3  # beyond [-1, 1], for rounding


def _no_data() -> Dataset | None:
    return None


@dataclass(frozen=True, eq=False)
class Subject:
    """A generator under evaluation, and what it is compared with.

    Attributes:
        sample: ``sample(n)``: n samples on the CPU, float32: images (n, C, H, W) in [-1, 1] or points (n, d); the
            same at every call.
        data: what it was trained on.
        make: ``make(z, labels=None)``: what it makes of latents (n, z_dim), on the CPU; None where only samples are
            known.
        latents: ``latents(n, seed)``: latents (n, z_dim) of the law it was trained with, on the CPU; None likewise.
        between: ``between(first, last, points)``: rows of as many latents from each of ``first`` to that of ``last``,
            as that law has them: (rows * points, z_dim); None likewise.
        classes: how many classes ``labels`` tells apart; 0: it takes latents only.
        rest: samples of the same data set that it was not trained on, as a limit left them out; None where none were.
        held_out: ``held_out()``: the data set's test split; None where it has none.
        discriminator: samples -> logits, in evaluation mode; None where it is not known.
        table: whose rows the samples are, as the generator knows it; None: the data's own, where they have one.
        seed: what random choices of a metric follow from.
        weights: which weights these are, for the protocol.
        labels: which classes ``sample`` tells the generator, likewise; empty where it is told none.
    """

    sample: Callable[[int], Tensor]
    data: Dataset
    make: Callable[..., Tensor] | None = None
    latents: Callable[[int, int], Tensor] | None = None
    between: Callable[[Tensor, Tensor, int], Tensor] | None = None
    classes: int = 0
    rest: Dataset | None = None
    held_out: Callable[[], Dataset | None] = _no_data
    discriminator: nn.Module | None = None
    table: Table | None = None
    seed: int = 0
    weights: str = "weights"
    labels: str = ""

    @classmethod
    def of_samples(cls, samples: Tensor, data: Dataset, **others: Any) -> Subject:
        """Make a subject of samples that were drawn already; ``others`` are its further attributes.

        Raises UserError for samples of another kind than the data's: not floats, of another shape, not finite, or
        images beyond [-1, 1].
        """
        _check(samples, data)

        def sample(n: int) -> Tensor:
            if not 1 <= n <= len(samples):
                raise UserError(f"{n} samples are wanted and there are {len(samples)}: give n between 1 and that")
            return samples[:n].detach().cpu()

        return cls(sample, data, **others)

    @property
    def origin(self) -> str:
        """Where samples come from, for the protocol."""
        return f"{self.weights}, {self.labels}" if self.labels else self.weights

    def random(self) -> torch.Generator:
        """A fresh random generator on the CPU that follows from the seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Result:
    """What a metric found.

    Attributes:
        metric: its name.
        values: what was measured, by name.
        protocol: one line that says how: numbers of samples, which data, the extractor's name, which weights.
        pictures: file name -> what draws it, as PNG, into the path that it is given.
        reference: where the definition and the protocol come from.
        published: a figure of the literature to compare with, and whose; empty where there is none.
        reading: what the numbers come to, in words, where they have bounds to be read by.
    """

    metric: str
    values: dict[str, float]
    protocol: str
    pictures: Mapping[str, Draw] = field(default_factory=dict)
    reference: str = ""
    published: str = ""
    reading: str = ""


class Metric(Protocol):
    """A module of this floor that measures one thing."""

    CHEAP: bool  # whether it runs where nobody named a metric

    def suits(self, dataset: Dataset) -> str | None:
        """Why it cannot be measured against these data; None where it can."""

    def measure(self, subject: Subject, n: int | None = None, **options: Any) -> Result:
        """Measure with ``n`` samples, or as many as its protocol has. Raises UserError for ``options`` it cannot meet.

        A module names its options: keywords with defaults.
        """


def _check(samples: Tensor, data: Dataset) -> None:
    if not samples.is_floating_point():
        kind = str(samples.dtype).removeprefix("torch.")
        raise UserError(
            f"samples are floats, images in [-1, 1], not {kind}: fastgan.data.normalise turns pixels into them"
        )
    if tuple(samples.shape[1:]) != data.sample_shape:
        raise UserError(
            f"samples of {data.name} have shape (n, {str(data.sample_shape)[1:]}, not {tuple(samples.shape)}"
        )
    if not samples.isfinite().all():
        raise UserError("some samples are not finite: leave them out, or mend what made them")
    if samples.ndim == 4 and len(samples) and float(samples.detach().abs().amax()) > 1 + SLACK:
        raise UserError(f"images are in [-1, 1], and these reach {float(samples.detach().abs().amax()):g}: scale them")


def needs_images(dataset: Dataset) -> str | None:
    """Why a metric of images does not apply to ``dataset``; None where it does."""
    if len(dataset.sample_shape) == 3:
        return None
    return f"it compares images, and {dataset.name} holds points"


def chosen(data: Dataset, n: int, random: torch.Generator | None = None) -> Tensor:
    """``n`` samples of a data set on the CPU in [-1, 1]: all of them in order where n is their number, else at random
    without replacement."""
    if n > len(data):
        raise UserError(f"{data.name} has {len(data)} samples, fewer than {n}: give a smaller --n")
    index = torch.arange(n) if n == len(data) else torch.randperm(len(data), generator=random)[:n]
    return torch.cat([data.batch(part).cpu() for part in index.split(4096)])
