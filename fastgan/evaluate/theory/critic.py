"""What a trained critic estimates, beside the Wasserstein-1 distance of the same samples computed exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import require
from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import Mixture, normal, sorted_distance
from fastgan.nn import Chain, LinearAct
from fastgan.objectives import discriminator_loss
from fastgan.objectives.penalties import gradient_penalty

Critic = Callable[[Tensor], Tensor]  # samples (n, d) -> scores (n,)
SAMPLES = 256
SHIFTS = (0.5, 1.0, 2.0, 4.0)
TWO_HEAPS = Mixture((-2.0, 2.0), (0.5, 0.5), (0.5, 0.5))  # their best critic against N(0, 1) is no straight line


class Estimate(NamedTuple):
    """What a critic says of two samples."""

    gap: float  # mean score of the real ones less that of the generated ones
    steepest: float  # the largest slope from a generated to a real sample
    bound: float  # their ratio: never above W1 of the samples


def critic_estimates_wasserstein_on_the_line(seed: int = 0) -> Claim:
    """Train a critic on pairs of samples on the line, where W1 is the mean distance of the sorted ones."""
    generator = torch.Generator().manual_seed(seed)
    densities = [(normal(), normal(shift)) for shift in SHIFTS] + [(TWO_HEAPS, normal())]
    pairs = [
        (p.sample(SAMPLES, 1, generator=generator), q.sample(SAMPLES, 1, generator=generator)) for p, q in densities
    ]
    exact = [float(sorted_distance(real[:, 0], fake[:, 0])) for real, fake in pairs]
    critics = [trained(real, fake, seed) for real, fake in pairs]
    estimates = [estimate(critic, real, fake) for critic, (real, fake) in zip(critics, pairs, strict=True)]
    return Claim(
        "critic-estimates-wasserstein-on-the-line",
        "A critic held to slope 1 estimates the Wasserstein distance by the gap of its mean scores; over its steepest "
        "slope, the gap is never too large.",
        "Arjovsky et al., 2017, eq. 2 (Kantorovich-Rubinstein); Gulrajani et al., 2017, eq. 3; Petzka et al., 2018",
        compared(exact, estimates),
        partial(_draw_line, exact, estimates, pairs[-1], critics[-1]),
        panels=2,
    )


def critic_estimates_wasserstein_in_the_plane(seed: int = 0) -> Claim:
    """Train a critic between a ring of eight heaps and a heap in its middle; the exact W1 is an assignment problem."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(SAMPLES, dtype=torch.float64) * (2 * math.pi / 8)
    real = 3 * torch.stack([angle.cos(), angle.sin()], dim=1) + normal(0, 0.2).sample(SAMPLES, 2, generator=generator)
    fake = normal(0, 0.7).sample(SAMPLES, 2, generator=generator)
    partner = matching(real, fake)
    exact = float((real - fake[partner]).norm(dim=1).mean())
    critic = trained(real, fake, seed)
    return Claim(
        "critic-estimates-wasserstein-in-the-plane",
        "In the plane, too, a critic held to slope 1 finds the cost of the cheapest one-to-one matching of real and "
        "generated samples.",
        "Arjovsky et al., 2017, eq. 1-2; Gulrajani et al., 2017, eq. 3; Kuhn, 1955 (assignment)",
        compared([exact], [estimate(critic, real, fake)]),
        partial(_draw_plane, critic, real, fake, partner),
        panels=2,
    )


def compared(exact: Sequence[float], estimates: Sequence[Estimate]) -> tuple[Measured, ...]:
    """A critic's estimates over the exact distances: the worst of them."""
    gaps = [found.gap / distance for found, distance in zip(estimates, exact, strict=True)]
    bounds = [found.bound / distance for found, distance in zip(estimates, exact, strict=True)]
    return (
        Measured("gap of mean scores over exact W1, least", min(gaps), 1, 0.1),
        Measured("gap of mean scores over exact W1, most", max(gaps), 1, 0.1),
        Measured("gap / steepest slope over exact W1, least", min(bounds), 0.9, 0, "at_least"),
        Measured("gap / steepest slope over exact W1, most", max(bounds), 1, 1e-12, "at_most"),
    )


def trained(real: Tensor, fake: Tensor, seed: int, steps: int = 300, weight: float = 30.0) -> Critic:
    """A small critic after training on all of both samples ``(n, d)``, slopes above 1 being penalised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [LinearAct(real.shape[1], 32, activation="relu"), LinearAct(32, 32, activation="relu")]
        network = Chain(*layers, LinearAct(32, 1, activation="none")).double()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
        for _ in range(steps):
            partners = fake[torch.randperm(len(fake))]
            loss = discriminator_loss("wasserstein", network(real), network(fake))
            loss = loss + weight * gradient_penalty(network, real, partners, one_sided=True).value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.requires_grad_(False)
    return lambda x: network(x).squeeze(1)


def estimate(critic: Critic, real: Tensor, fake: Tensor) -> Estimate:
    """The critic's gap, and its steepest slope between any two of the samples: what Kantorovich's dual asks about."""
    high, low = critic(real), critic(fake)
    gap = float(high.mean() - low.mean())
    steepest = float(((high[:, None] - low) / torch.cdist(real, fake)).max())
    return Estimate(gap, steepest, gap / steepest)


def matching(real: Tensor, fake: Tensor) -> Tensor:
    """The generated partner of each real sample where the sum of distances is least. Raises UserError without scipy."""
    optimize = require("scipy.optimize", extra="eval", why="the exact Wasserstein distance in the plane")
    rows, columns = optimize.linear_sum_assignment(torch.cdist(real, fake).numpy())
    return torch.from_numpy(columns)[torch.from_numpy(rows).argsort()]


def _draw_line(
    exact: Sequence[float],
    estimates: Sequence[Estimate],
    pair: tuple[Tensor, Tensor],
    critic: Critic,
    axes: Sequence[Any],
) -> None:
    far = max(exact) * 1.1
    axes[0].plot([0, far], [0, far], "k--", linewidth=1, label="exact")
    axes[0].plot(exact, [found.gap for found in estimates], "o", color="tab:orange", label="gap of mean scores")
    axes[0].plot(exact, [found.bound for found in estimates], "v", color="tab:green", label="gap / steepest slope")
    axes[0].set(title="five pairs of samples", xlabel="W1 of the sorted samples", ylabel="estimate of the critic")
    axes[0].legend()
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    for samples, label, color in zip(pair, ("real", "generated"), ("tab:blue", "tab:orange"), strict=True):
        axes[1].hist(samples[:, 0].numpy(), bins=40, range=(-4, 4), density=True, color=color, alpha=0.3, label=label)
    scores = critic(x[:, None])
    axes[1].plot(x, scores - scores.min(), color="tab:green", linewidth=2, label="critic")
    axes[1].set(title="two heaps against one: slopes of 1 towards the data", xlabel="x", ylim=(0, 3.4))
    axes[1].legend(loc="upper center", ncols=3)


def _draw_plane(critic: Critic, real: Tensor, fake: Tensor, partner: Tensor, axes: Sequence[Any]) -> None:
    side = torch.linspace(-4.2, 4.2, 85, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    scores = critic(grid).view(85, 85).T
    axes[0].contourf(side, side, scores, 21, cmap="Greys", vmax=2 * scores.max() - scores.min())
    for start, end in zip(real.tolist(), fake[partner].tolist(), strict=True):
        axes[1].plot(*zip(start, end, strict=True), color="0.75", linewidth=0.6, zorder=1)
    for axis, title in zip(axes, ("heights of the critic", "the cheapest matching"), strict=True):
        axis.scatter(*real.T, s=7, color="tab:blue", linewidths=0, label="real", zorder=2)
        axis.scatter(*fake.T, s=7, color="tab:orange", linewidths=0, label="generated", zorder=2)
        axis.set(title=title, aspect="equal", xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))
        axis.legend(loc="upper right", markerscale=2)


CLAIMS: tuple[Check, ...] = (critic_estimates_wasserstein_on_the_line, critic_estimates_wasserstein_in_the_plane)
