"""What a latent is for: any law will do that is rich enough to be mapped onto the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import Mixture
from fastgan.models.mlp import MLPGenerator

TARGET = Mixture((-1.5, 1.5), (0.4, 0.6), (0.4, 0.6))
WIDTH = 8  # numbers in a continuous latent
COINS = (2, 4, 8)  # flips in a discrete one: 4 ... 256 values
FINE = 2**14  # samples on which a fit is measured

Latent = Callable[[int, torch.Generator], Tensor]  # n, generator -> (n, z_dim)


def normal_latent(n: int, generator: torch.Generator) -> Tensor:
    """z of N(0, 1) numbers."""
    return torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)


def uniform_latent(n: int, generator: torch.Generator) -> Tensor:
    """z of uniform numbers in [-1, 1]."""
    return 2 * torch.rand(n, WIDTH, generator=generator, dtype=torch.float64) - 1


def coin_latent(coins: int) -> Latent:
    """z of fair coin flips, each -1 or 1.

    Where n is a multiple of the number of values, each comes equally often: a batch can hold all that such a latent is.
    """
    values = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * coins).view(-1, coins)

    def latent(n: int, generator: torch.Generator) -> Tensor:
        places = torch.randint(len(values), (n,), generator=generator) if n % len(values) else torch.arange(n)
        return values[places % len(values)]

    return latent


@cache
def quantiles(n: int) -> Tensor:
    """The target's quantiles at the middles of n equal shares."""
    return TARGET.quantiles(n)


def wasserstein(samples: Tensor) -> Tensor:
    """W1 between samples ``(n,)`` and the target, by order: what the best critic of a WGAN would say."""
    return (samples.sort().values - quantiles(len(samples))).abs().mean()


def least_distance(values: int) -> float:
    """The least W1 that so many equally likely values can have: each stands at the median of its share of the mass."""
    shares = quantiles(FINE).view(values, -1)
    return float((shares - shares.median(dim=1, keepdim=True).values).abs().mean())


def fit(latent: Latent, seed: int, *, steps: int = 400, batch: int = 256) -> Tensor:
    """Train a small generator against the exact critic, and return ``FINE`` samples of it, sorted."""
    generator = torch.Generator().manual_seed(seed)
    z_dim = latent(batch, generator).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLPGenerator(z_dim, (1,), hidden=(32, 32), norm=False, activation="tanh", output="none").double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = wasserstein(network(latent(batch, generator)).squeeze(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        samples: Tensor = network(latent(FINE, generator)).squeeze(1).sort().values
    return samples


def latents_fit_the_same_target(seed: int = 0) -> Claim:
    """Normal, uniform and discrete latents, one network each, on one target of two peaks."""
    rich = {"normal": normal_latent, "uniform": uniform_latent, f"{COINS[-1]} coins": coin_latent(COINS[-1])}
    fits = {name: fit(latent, seed) for name, latent in rich.items()}
    distances = {name: float(wasserstein(samples)) for name, samples in fits.items()}
    coarse = {coins: float(wasserstein(fit(coin_latent(coins), seed))) for coins in COINS[:-1]}
    coarse[COINS[-1]] = distances[f"{COINS[-1]} coins"]
    measured = [Measured(f"W1 of the fit, {name} latent", d, 0.07, None, "at_most") for name, d in distances.items()]
    for coins in COINS[:-1]:
        what = f"W1 of the fit, {2**coins} values, near the least that these can have"
        measured.append(Measured(what, coarse[coins], least_distance(2**coins), 0.01))

    def draw(axes: Sequence[Any]) -> None:
        _densities(axes[0], fits)
        counts = [2**coins for coins in COINS]
        axes[1].loglog(counts, [coarse[coins] for coins in COINS], "o", color="tab:green", label="fitted generator")
        floor = [least_distance(count) for count in counts]
        axes[1].loglog(counts, floor, color="k", linewidth=1, linestyle="--", label="least possible")
        axes[1].axhline(distances["normal"], color="tab:blue", linewidth=0.8, linestyle=":", label="normal latent")
        axes[1].set(title="a discrete latent has to be large enough", xlabel="values of the latent", ylabel="W1")
        axes[1].legend()

    return Claim(
        name="latents-fit-the-same-target",
        statement="The law of z does not matter where it is rich enough: normal, uniform and discrete latents fit one "
        "target alike. A discrete one of few values cannot: m values leave at least the W1 of m points.",
        source="Goodfellow et al., 2014, section 3 (a prior on z, mapped to data space); W1 of sorted samples",
        measured=tuple(measured),
        draw=draw,
        panels=2,
    )


def _densities(axis: Any, fits: dict[str, Tensor]) -> None:
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    axis.fill_between(x, TARGET.density(x), color="0.85", label="target")
    for (name, samples), color in zip(fits.items(), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        heights, edges = torch.histogram(samples, bins=64, range=(-4, 4), density=True)
        axis.stairs(heights, edges, color=color, linewidth=1.2, label=name)
    axis.set(title="generated samples, three latents", xlabel="x", ylabel="density")
    axis.legend()


CLAIMS: tuple[Check, ...] = (latents_fit_the_same_target,)
