"""Interpolation: how samples change on the way from one latent to another, and whether they change at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.metric import Draw, Result, Subject, chosen
from fastgan.evaluate.sheet import Row, sheet

CHEAP = True
PATHS = 16
STEPS = 32  # from one end of a path to the other
SHOWN = (8, 9)  # paths and samples of each in the picture
SAMPLES = 512  # for the variation
MOST_CLASSES = 8  # whose variation is measured
IGNORED = 0.05  # share of the data's variation below which the latent is as good as ignored
REFERENCE = "Radford et al., 2015 (DCGAN), section 6.1; White, 2016, section 2.1 (the great circle)"


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``: it always can."""
    return None


def jumps(paths: Tensor) -> Tensor:
    """Largest step of each path ``(paths, points, ...)`` relative to its mean step: ``(paths,)``.

    1 where the pace is even; as many as there are steps where all changes in one of them; NaN where nothing does.
    """
    steps = (paths[:, 1:] - paths[:, :-1]).flatten(2).double().norm(dim=2)
    return steps.amax(1) / steps.mean(1)


def variation(samples: Tensor, labels: Tensor | None = None) -> float:
    """Sum of the variances of all values of samples ``(n, ...)``; within each of the ``labels`` where there are any."""
    flat = samples.flatten(1).double()
    if labels is None:
        return float(flat.var(0).sum())
    groups = [group for label in labels.unique() if len(group := flat[labels == label]) > 1]
    return sum(float(group.var(0).sum()) for group in groups) / len(groups) if groups else math.nan


def measure(subject: Subject, n: int | None = None) -> Result:
    """Follow 16 paths of 32 steps; compare the variation of ``n`` samples, 512 by default, with that of the data."""
    if subject.make is None or subject.latents is None or subject.between is None:
        raise UserError("interpolation needs the generator, its latents, and samples that follow from these alone")
    n = n or SAMPLES
    least = 2 * max(1, min(subject.classes, MOST_CLASSES))
    if n < least:
        raise UserError(f"the variation over the latent takes at least {least} samples, two of each class: --n {least}")
    ends = subject.latents(2 * PATHS, subject.seed)
    z = subject.between(ends[0::2], ends[1::2], STEPS + 1)
    labels = _classes(subject, PATHS)
    made = subject.make(z, None if labels is None else labels.repeat_interleave(STEPS + 1))
    paths = made.unflatten(0, (PATHS, STEPS + 1))
    largest = jumps(paths)
    ours, theirs = _variations(subject, n)
    share = ours / theirs if theirs > 0 else math.nan
    return Result(
        "interpolation",
        {
            "largest step / mean step": float(largest.nanmean()),
            "largest step / mean step, worst path": float(max(largest.tolist(), key=lambda most: (most == most, most))),
            "variation over z / of the data": share,
        },
        f"{PATHS} paths of {STEPS} steps between latents of the training law ({subject.weights}): 1 is an even pace,"
        f" {STEPS} one jump; variation: sum of the variances of all values, of {n} samples"
        f"{_within(subject)}",
        _pictures(paths),
        REFERENCE,
        reading=_reading(share, largest),
    )


def _variations(subject: Subject, n: int) -> tuple[float, float]:
    """Variation of samples over the latent, the class held fixed, and of as many real ones."""
    assert subject.make is not None and subject.latents is not None
    data = subject.data
    z = subject.latents(n, subject.seed + 1)
    labels = _classes(subject, n)
    ours = variation(subject.make(z, labels), labels)
    if labels is None or data.labels is None:
        return ours, variation(chosen(data, min(n, len(data)), subject.random()))
    kept = torch.isin(data.labels.cpu(), labels).nonzero().flatten()
    kept = kept[torch.randperm(len(kept), generator=subject.random())[:n]]
    return ours, variation(data.batch(kept).cpu(), data.labels.cpu()[kept])


def _within(subject: Subject) -> str:
    if not subject.classes:
        return ""
    return " within each class" if subject.data.labels is not None else " within each class, of the data over all"


def _classes(subject: Subject, n: int) -> Tensor | None:
    """A class for each of ``n`` samples, a few classes in equal shares; None for a generator that knows none."""
    return torch.arange(n) % min(subject.classes, MOST_CLASSES) if subject.classes else None


def _reading(share: float, largest: Tensor) -> str:
    if math.isnan(share):
        return "the data do not vary: nothing can be said of the latent"
    if share < IGNORED:
        return "the latent is ignored: samples hardly change with it"
    moving = largest[largest.isfinite()]
    if float((moving > STEPS / 2).double().mean()) > 0.25:
        return "samples jump: on many paths one step is more than half of the way"
    return "samples follow the latent without jumps"


def _pictures(paths: Tensor) -> dict[str, Draw]:
    """Rows from one latent to another, of images; none of points."""
    if paths.ndim != 5:
        return {}
    rows, columns = SHOWN
    at = torch.linspace(0, STEPS, columns).round().long()
    shown = [Row("", path[at]) for path in paths[:rows]]
    return {"interpolation.png": lambda path: sheet(shown).savefig(path, format="png")}
