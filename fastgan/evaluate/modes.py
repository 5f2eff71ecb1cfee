"""Mode coverage of points that were drawn from a mixture: which modes are there, how sharp, and in which shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.data import Dataset, Modes
from fastgan.errors import UserError, require
from fastgan.evaluate.metric import Draw, Result, Subject, chosen

CHEAP = True
SAMPLES = 2500  # PacGAN, section 4.1; VEEGAN, section 4.1
REACH = 3.0  # standard deviations within which a sample is one of a mode
REFERENCE = "Srivastava et al., 2017 (VEEGAN), section 4.1; Lin et al., 2018 (PacGAN), section 4.1"
PUBLISHED = {
    "ring8": "GAN 6.3 modes, 98.2 % high quality, reverse KL 0.45; PacGAN2 7.9, 95.6 %, 0.07 (PacGAN, table 1)",
    "grid25": "GAN 17.3 modes, 94.8 % high quality, reverse KL 0.70; PacGAN4 24.8, 93.6 %, 0.04 (PacGAN, table 1)",
}


@dataclass(frozen=True)
class Coverage:
    """What samples make of the modes.

    Attributes:
        covered: modes with at least one high-quality sample: one within 3 standard deviations of the centre.
        high_quality: share of the samples that are one of any mode's, 0 ... 1.
        counts: (modes,) how many samples are nearest to each mode.
    """

    covered: int
    high_quality: float
    counts: Tensor


def coverage(samples: Tensor, modes: Modes) -> Coverage:
    """Count the modes that points (n, d) cover. A point that is not finite belongs to none of high quality."""
    centres = modes.centres.double()
    distance = torch.cdist(samples.double(), centres).nan_to_num(nan=torch.inf)
    nearest, which = distance.min(1)
    good = nearest <= REACH * modes.sigma
    hit = torch.bincount(which[good], minlength=len(centres))
    return Coverage(int((hit > 0).sum()), float(good.double().mean()), torch.bincount(which, minlength=len(centres)))


def reverse_kl(generated: Tensor, data: Tensor) -> float:
    """KL(generated || data) in nats of two histograms of counts (modes,). Infinite where the data lack a mode."""
    p, q = (counts.double() / counts.sum() for counts in (generated, data))
    return float(torch.special.xlogy(p, p / q).nan_to_num(nan=0.0, posinf=torch.inf).sum())


def suits(dataset: Dataset) -> str | None:
    """Why the modes of ``dataset`` cannot be counted; None where they can."""
    return None if dataset.modes is not None else f"{dataset.name} is no mixture of known modes"


def measure(subject: Subject, n: int | None = None) -> Result:
    """Count modes over ``n`` samples, 2,500 as published."""
    modes = subject.data.modes
    if modes is None:
        raise UserError(f"modes cannot be counted: {suits(subject.data)}")
    n = n or SAMPLES
    samples = subject.sample(n)
    found, real = coverage(samples, modes), coverage(subject.data.images.cpu(), modes)
    total = len(modes.centres)
    return Result(
        "modes",
        {
            "modes covered": found.covered,
            "modes": total,
            "high quality %": 100 * found.high_quality,
            "reverse KL": reverse_kl(found.counts, real.counts),
        },
        f"{n} samples ({subject.origin}); high quality: within {REACH:g} sigma = {REACH * modes.sigma:g} of a centre;"
        " a mode is covered by one such sample; KL(generated || data) between counts of the nearest mode",
        _pictures(subject, samples, modes),
        REFERENCE,
        PUBLISHED.get(subject.data.name, "") if n == SAMPLES else "",
    )


def _pictures(subject: Subject, samples: Tensor, modes: Modes) -> dict[str, Draw]:
    """Samples over real ones, where these are points in the plane."""
    if samples.shape[1:] != (2,):
        return {}
    real = chosen(subject.data, min(len(subject.data), 2000), subject.random())
    return {"modes.png": lambda path: picture(samples, real, modes).savefig(path, format="png")}


def picture(samples: Tensor, real: Tensor, modes: Modes) -> Any:
    """Draw points (n, 2) over real ones, with a circle of 3 sigma around each mode; return the matplotlib figure."""
    figures = require("matplotlib.figure", why="drawing the modes")
    patches = require("matplotlib.patches", why="drawing the modes")
    figure = figures.Figure(figsize=(6, 6), dpi=110, layout="constrained")  # no pyplot: no window, no global state
    axis = figure.subplots()
    good = torch.cdist(samples.double(), modes.centres.double()).amin(1) <= REACH * modes.sigma
    axis.scatter(*real.T, s=5, color="0.75", linewidths=0, label="real")
    axis.scatter(*samples[~good].T, s=5, color="tab:blue", alpha=0.5, linewidths=0, label="generated, of no mode")
    axis.scatter(*samples[good].T, s=5, color="tab:orange", alpha=0.7, linewidths=0, label="generated, high quality")
    hit = coverage(samples, modes)
    for centre in modes.centres.tolist():
        axis.add_patch(patches.Circle(centre, REACH * modes.sigma, fill=False, color="0.4", linewidth=0.6))
    reach = float(modes.centres.abs().max()) * 1.4
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.set_title(
        f"{hit.covered} of {len(modes.centres)} modes, {100 * hit.high_quality:.1f} % high quality", fontsize=10
    )
    axis.legend(loc="upper right", frameon=False, markerscale=3, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
