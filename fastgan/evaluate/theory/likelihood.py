"""Three ways to fit one density: maximum likelihood, a VAE's bound on it, and a GAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import LINE, Mixture, integral, jensen_shannon, kullback_leibler, normal
from fastgan.nn import Chain, LinearAct
from fastgan.objectives import generator_loss

DATA = Mixture((-2.0, 2.0), (0.5, 0.5), (0.4, 0.6))
LATENTS = torch.linspace(-8, 8, 8001, dtype=torch.float64)  # the grid over z
POINTS = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)  # where a bound is looked at


class VAE(nn.Module):
    """A variational autoencoder of numbers, with a z of one number.

    p(z) = N(0, 1), p(x|z) = N(decoder(z), std^2), q(z|x) = N(mean(x), std(x)^2). Source: Kingma and Welling, 2014.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _network(2), _network(1)
        self.log_std = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x), of x's shape ``(n,)``."""
        mean, log_std = self.encoder(x[:, None]).T
        return mean, log_std

    def log_given(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) of x and z, broadcast against each other."""
        return log_normal(x, self.decoder(z.reshape(-1, 1)).view(z.shape), self.log_std)

    def elbo(self, x: Tensor, noise: Tensor) -> Tensor:
        """E_q log p(x|z) - KL(q || p(z)) at each x, with z from ``noise`` (n, draws), as it is trained."""
        mean, log_std = self.posterior(x)
        z = mean[:, None] + log_std.exp()[:, None] * noise
        return self.log_given(x[:, None], z).mean(dim=1) - divergence_of_prior(mean, log_std)


def divergence_of_prior(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in closed form (Kingma and Welling, appendix B)."""
    return (mean.square() + (2 * log_std).exp() - 1) / 2 - log_std


def log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std^2)."""
    return -((x - mean) / log_std.exp()).square() / 2 - log_std - math.log(2 * math.pi) / 2


def log_joint(vae: VAE, x: Tensor) -> Tensor:
    """log p(x, z) of points ``(n,)`` on the grid over z: ``(n, grid)``."""
    return vae.log_given(x[:, None], LATENTS[None]) + normal().log_density(LATENTS)


def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) of points ``(n,)``, by the grid over z."""
    return torch.logsumexp(log_joint(vae, x), dim=1) + (LATENTS[1] - LATENTS[0]).log()


def bound(vae: VAE, x: Tensor) -> Tensor:
    """The ELBO of points ``(n,)``: E_q log p(x|z) by the grid over z, less KL(q || p(z)) in closed form."""
    mean, log_std = vae.posterior(x)
    q = log_normal(LATENTS, mean[:, None], log_std[:, None]).exp()
    return integral(q * vae.log_given(x[:, None], LATENTS[None]), LATENTS) - divergence_of_prior(mean, log_std)


def divergence_of_posterior(vae: VAE, x: Tensor) -> Tensor:
    """KL(q(z|x) || p(z|x)) of points ``(n,)``, by the grid over z."""
    mean, log_std = vae.posterior(x)
    log_q = log_normal(LATENTS, mean[:, None], log_std[:, None])
    return kullback_leibler(log_q, log_joint(vae, x) - log_evidence(vae, x)[:, None], LATENTS)


def likeliest_normal(data: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the normal density that makes the data likeliest, found by LBFGS."""
    place = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # mean, log of the standard deviation
    optimizer = torch.optim.LBFGS(
        [place], max_iter=100, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_normal(data, place[0], place[1]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, log_std = place.tolist()
    return mean, math.exp(log_std)


def gan_normal(start: Mixture, *, steps: int = 400, rate: float = 0.1) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, step by step, of G(z) = mean + std z against D* with the loss ``non_saturating``.

    From a wide start it stays wide, and from one near the smaller peak it ends there: both are only local fits.
    """
    place = torch.tensor([start.means[0], math.log(start.stds[0])], dtype=torch.float64, requires_grad=True)
    z = normal().quantiles(400)
    path = [place.detach()]
    for _ in range(steps):
        fake = place[0] + place[1].exp() * z
        optimal = DATA.log_density(fake) - log_normal(fake, *path[-1])  # D*'s logits: G's law is held fixed in it
        (slope,) = torch.autograd.grad(generator_loss("non_saturating", optimal), place)
        place = (place - rate * slope).detach().requires_grad_()
        path.append(place.detach())
    means, log_stds = torch.stack(path).T
    return means.tolist(), log_stds.exp().tolist()


def nearest_normal() -> Tensor:
    """The least JSD between the data and a normal density, on a grid of means and standard deviations."""
    log_p = DATA.log_density(LINE)
    means, stds = (torch.arange(low, high, 0.25).tolist() for low, high in ((-3, 3.1), (0.25, 3.1)))
    return torch.stack([jensen_shannon(log_p, normal(m, s).log_density(LINE)) for m in means for s in stds]).min()


@cache
def trained_vae(seed: int, *, steps: int = 1000, draws: int = 4) -> VAE:
    """A VAE trained on 200 quantiles of the data by its bound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE()
    generator = torch.Generator().manual_seed(seed)
    data = DATA.quantiles(200)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        noise = torch.randn(len(data), draws, generator=generator, dtype=torch.float64)
        (-vae.elbo(data, noise).mean()).backward()
        optimizer.step()
        schedule.step()
    return vae.requires_grad_(False)


def elbo_is_below_the_likelihood(seed: int = 0) -> Claim:
    """A trained VAE's bound against its log p(x) by a grid over z, and what lies between."""
    vae = trained_vae(seed)
    evidence, elbo, divergence = (part(vae, POINTS) for part in (log_evidence, bound, divergence_of_posterior))
    gap = evidence - elbo

    def draw(axes: Sequence[Any]) -> None:
        axes[0].plot(POINTS, evidence, color="tab:blue", label="log p(x), by a grid over z")
        axes[0].plot(POINTS, elbo, color="tab:orange", label="ELBO")
        axes[0].fill_between(POINTS, elbo, evidence, color="tab:orange", alpha=0.2, linewidth=0)
        axes[0].set(title="a VAE's bound", xlabel="x", ylabel="nats", ylim=(-8, 0))
        axes[1].semilogy(POINTS, gap, color="tab:orange", linewidth=2.4, label="log p(x) - ELBO")
        axes[1].semilogy(POINTS, divergence, color="k", linewidth=1, linestyle="--", label="KL(q(z|x) || p(z|x))")
        axes[1].set(title="what the bound leaves", xlabel="x", ylabel="nats")
        for axis in axes:
            axis.legend()

    return Claim(
        name="elbo-is-below-the-likelihood",
        statement="A VAE maximises a lower bound: its ELBO is at most log p(x), and what is between them is "
        "KL(q(z|x) || p(z|x)), which is 0 only where the encoder is the true posterior.",
        source="Kingma and Welling, 2014, Auto-Encoding Variational Bayes, eq. 1-3",
        measured=(
            Measured("least of log p(x) - ELBO", float(gap.min()), 0.0, None, "at_least"),
            Measured("largest |gap - KL(q(z|x) || p(z|x))|", float((gap - divergence).abs().max()), 0.0, 1e-9),
            Measured("the gap with the true posterior of a linear model", float(exact_gap().abs().max()), 0.0, 1e-10),
            Measured("integral of p(x), the VAE's", mass(vae), 1.0, 1e-6),
        ),
        draw=draw,
        panels=2,
    )


def each_fit_errs_in_its_own_way(seed: int = 0) -> Claim:
    """One density of two peaks, and three fits of it."""
    data = DATA.quantiles(2000)
    likeliest = normal(*likeliest_normal(data))
    means, stds = gan_normal(normal(1.0, 1.0))
    picked = normal(means[-1], stds[-1])
    log_p, log_ml, log_gan = (density.log_density(LINE) for density in (DATA, likeliest, picked))
    log_vae = log_evidence(trained_vae(seed), POINTS)
    covers = float(kullback_leibler(log_p, log_ml) / kullback_leibler(log_p, log_gan))
    jsd = jensen_shannon(log_p, log_gan)
    picks = float(jsd / jensen_shannon(log_p, log_ml))
    between = float((log_ml - log_p)[len(LINE) // 2].exp())
    left = float(kullback_leibler(DATA.log_density(POINTS), log_vae, POINTS) / kullback_leibler(log_p, log_ml))

    def draw(axes: Sequence[Any]) -> None:
        _three_fits(axes[0], likeliest, picked, log_vae)
        axes[1].plot(means[:60], color="tab:orange", label="mean")
        axes[1].plot(stds[:60], color="tab:blue", label="standard deviation")
        axes[1].set(title="the GAN's way to one peak", xlabel="step")
        axes[1].legend()

    return Claim(
        name="each-fit-errs-in-its-own-way",
        statement="Where the model cannot be the data, maximum likelihood covers all of it and fills what is between; "
        "a GAN with the best D settles on a peak, where JSD is least. A VAE, which can be the data, finds both peaks.",
        source="Goodfellow et al., 2014, theorem 1 (JSD); Goodfellow, 2016, NIPS tutorial, section 3.2.5",
        measured=(
            Measured("mean of the likeliest normal: the data's", likeliest.means[0], float(data.mean()), 1e-6),
            Measured("its standard deviation: the data's", likeliest.stds[0], float(data.std(correction=0)), 1e-6),
            Measured("mean of the GAN's normal: the larger peak's", picked.means[0], DATA.means[1], 0.01),
            Measured("its standard deviation: that peak's", picked.stds[0], DATA.stds[1], 0.01),
            Measured("KL(data || fit), likelihood's over GAN's", covers, 0.5, None, "at_most"),
            Measured("JSD(data, fit), GAN's over likelihood's", picks, 0.9, None, "at_most"),
            Measured(
                "JSD of the GAN's fit over the least on a grid of normals", float(jsd / nearest_normal()), 1.0, 1e-4
            ),
            Measured("likeliest normal over the data, between the peaks", between, 10.0, None, "at_least"),
            Measured("KL(data || fit), VAE's over likelihood's", left, 1 / 3, None, "at_most"),
        ),
        draw=draw,
        panels=2,
    )


def exact_gap(slope: float = 1.5, std: float = 0.7) -> Tensor:
    """log p(x) - ELBO of p(x|z) = N(slope z, std^2) where q is the true posterior, by the grid over z."""
    variance = slope**2 + std**2
    log_std = torch.tensor(math.log(std / math.sqrt(variance)), dtype=torch.float64)
    log_q = log_normal(LATENTS, slope * POINTS[:, None] / variance, log_std)
    joint = normal(0, std).log_density(POINTS[:, None] - slope * LATENTS) + normal().log_density(LATENTS)
    return normal(0, math.sqrt(variance)).log_density(POINTS) + kullback_leibler(log_q, joint, LATENTS)


def mass(vae: VAE) -> float:
    """The integral of p(x) over all x."""
    line = torch.linspace(-8, 8, 401, dtype=torch.float64)
    return float(integral(log_evidence(vae, line).exp(), line))


def _network(outputs: int) -> Chain:
    layers = [LinearAct(1, 16, activation="tanh"), LinearAct(16, 16, activation="tanh")]
    return Chain(*layers, LinearAct(16, outputs, activation="none")).double()


def _three_fits(axis: Any, likeliest: Mixture, picked: Mixture, log_vae: Tensor) -> None:
    x = torch.linspace(-6, 6, 601, dtype=torch.float64)
    axis.fill_between(x, DATA.density(x), color="0.85", linewidth=0, label="data")
    axis.plot(x, likeliest.density(x), color="tab:blue", label="normal, maximum likelihood")
    axis.plot(x, picked.density(x), color="tab:orange", label="normal, GAN")
    axis.plot(POINTS, log_vae.exp(), color="tab:green", label="VAE")
    axis.set(title="three fits of one density", xlabel="x", ylabel="density", ylim=(0, 0.9))
    axis.legend(loc="upper left")


CLAIMS: tuple[Check, ...] = (elbo_is_below_the_likelihood, each_fit_errs_in_its_own_way)
