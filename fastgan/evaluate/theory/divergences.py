"""Densities that do not meet: one divergence is blind to their distance, another is it, and noise mends the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import jensen_shannon_by_entropy, sorted_distance, wasserstein

LINE = (torch.arange(-4000, 6000, dtype=torch.float64) + 0.5) / 500  # edges of boxes fall between two points
NOISE, RESIDUE = 1.0, 0.05  # standard deviation of the noise, in the beginning and annealed
START = 3.0
STEPS, RATE = 400, 0.1


def jensen_shannon_is_blind_to_distance(seed: int = 0) -> Claim:
    """Slide one box away from another: JSD and the Wasserstein distance of the two, and their slopes."""
    apart = torch.linspace(1, 4, 13, dtype=torch.float64)
    jsd, w1 = distances(apart)
    x, y = torch.rand(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Claim(
        "jensen-shannon-is-blind-to-distance",
        "Once two densities share no support, JSD is log 2 wherever they lie and has no slope to follow; Wasserstein-1 "
        "falls linearly with the distance between them.",
        "Arjovsky et al., 2017, example 1; Arjovsky and Bottou, 2017, theorem 2.3",
        (
            Measured("largest |JSD - log 2| at distances 1 ... 4", float((jsd - math.log(2)).abs().max()), 0, 1e-12),
            Measured(
                "JSD of boxes that overlap by half", float(distances(torch.tensor([0.5]))[0]), math.log(2) / 2, 1e-12
            ),
            Measured("largest |W1 - distance| at distances 1 ... 4", float((w1 - apart).abs().max()), 0, 1e-9),
            Measured("slope of JSD, largest", float((jsd.diff() / apart.diff()).abs().max()), 0, 1e-12),
            Measured("slope of W1, least", float((w1.diff() / apart.diff()).min()), 1, 1e-9),
            Measured("W1 at distance 3, of 4000 sorted samples a side", float(sorted_distance(x, y + 3)), 3, 0.03),
        ),
        _draw_distance,
        panels=2,
    )


def noise_mends_the_gradient(seed: int = 0) -> Claim:
    """Blur both boxes with normal noise and let one follow the slope of their JSD: noise annealed, and hardly any."""
    annealed = descent(lambda done: NOISE * (RESIDUE / NOISE) ** done)
    hardly = descent(lambda done: RESIDUE)
    origin = torch.zeros((), dtype=torch.float64)
    return Claim(
        "noise-mends-the-gradient",
        "Noise on both sides makes densities meet, so that JSD points the way again; annealed, it leaves the generator "
        "on the data.",
        "Arjovsky and Bottou, 2017, theorem 3.2; Sønderby et al., 2017 (instance noise)",
        (
            Measured(f"slope of JSD at distance 3, noise {NOISE:g}", slope(START, NOISE), 0.05, 0, "at_least"),
            Measured(f"slope of JSD at distance 3, noise {RESIDUE:g}", slope(START, RESIDUE), 0, 1e-12),
            Measured("distance after descent, noise annealed", annealed[-1], 0, 0.01),
            Measured(f"distance after descent, noise {RESIDUE:g} throughout", hardly[-1], START, 1e-9),
            Measured("JSD of equal boxes, blurred", float(blurred_divergence(origin, NOISE)), 0, 1e-12),
        ),
        partial(_draw_noise, annealed, hardly),
        panels=2,
    )


def box(left: float) -> Tensor:
    """The uniform density on [left, left + 1], on LINE."""
    return ((left < LINE) & (left + 1 > LINE)).double()


def distances(apart: Tensor) -> tuple[Tensor, Tensor]:
    """JSD and W1 of the box at 0 and each of those that lie ``apart``."""
    pairs = [(box(0), box(left)) for left in apart.tolist()]
    jsd = torch.stack([jensen_shannon_by_entropy(p, q, LINE) for p, q in pairs])
    return jsd, torch.stack([wasserstein(p, q, LINE) for p, q in pairs])


def blurred_box(left: Tensor, noise: float) -> Tensor:
    """The density of a uniform variable on [left, left + 1] plus normal noise, on LINE; differentiable in ``left``."""
    return torch.special.ndtr((LINE - left) / noise) - torch.special.ndtr((LINE - left - 1) / noise)


def blurred_divergence(left: Tensor, noise: float) -> Tensor:
    """JSD of the boxes at 0 and at ``left``, both with noise; differentiable in ``left``."""
    return jensen_shannon_by_entropy(blurred_box(torch.zeros_like(left), noise), blurred_box(left, noise), LINE)


def slope(left: float, noise: float) -> float:
    """The derivative of ``blurred_divergence`` by ``left``."""
    at = torch.tensor(left, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(blurred_divergence(at, noise), at)
    return float(derivative)


def descent(noise: Callable[[float], float]) -> list[float]:
    """Gradient descent of a box from START towards the one at 0; ``noise`` is a function of the share that is done."""
    path = [START]
    for step in range(STEPS):
        path.append(path[-1] - RATE * slope(path[-1], noise(step / (STEPS - 1))))
    return path


def _draw_distance(axes: Sequence[Any]) -> None:
    apart = torch.linspace(-4, 4, 161, dtype=torch.float64)
    jsd, w1 = distances(apart)
    axes[0].plot(apart, jsd, color="tab:orange", linewidth=2)
    axes[0].axhline(math.log(2), color="0.6", linewidth=0.8, linestyle=":")
    axes[0].annotate("log 2", (0, math.log(2)), va="bottom", ha="center", color="0.4", fontsize=8)
    axes[0].set(title="Jensen-Shannon: flat where nothing is shared", xlabel="shift between two boxes", ylim=(0, 0.8))
    axes[1].plot(apart, w1, color="tab:blue", linewidth=2)
    axes[1].set(title="Wasserstein-1: a slope everywhere", xlabel="shift between two boxes", ylim=(0, 4.2))


def _draw_noise(annealed: Sequence[float], hardly: Sequence[float], axes: Sequence[Any]) -> None:
    apart = torch.linspace(-4, 4, 121, dtype=torch.float64)
    for noise, color in ((RESIDUE, "tab:orange"), (0.3, "tab:olive"), (NOISE, "tab:green"), (2.0, "tab:blue")):
        divergences = [blurred_divergence(left, noise) for left in apart]
        axes[0].plot(apart, divergences, color=color, linewidth=1.8, label=f"noise {noise:g}")
    axes[0].set(title="JSD of blurred boxes", xlabel="shift between two boxes", ylim=(0, 0.9))
    axes[0].legend(loc="upper center", ncols=4, fontsize=8)
    axes[1].plot(annealed, color="tab:green", linewidth=1.8, label=f"noise {NOISE:g} annealed to {RESIDUE:g}")
    axes[1].plot(hardly, color="tab:orange", linewidth=1.8, label=f"noise {RESIDUE:g} throughout")
    axes[1].set(title="descent along it", xlabel="step", ylabel="distance", ylim=(-0.2, 3.6))
    axes[1].legend(loc="center right")


CLAIMS: tuple[Check, ...] = (jensen_shannon_is_blind_to_distance, noise_mends_the_gradient)
