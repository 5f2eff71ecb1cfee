"""Workloads ``wgan-gp`` and ``wgan-gp-mlp``: a critic with a gradient penalty, five updates of it to one of G.

Source: Gulrajani et al., 2017, "Improved Training of Wasserstein GANs", algorithm 1, and improved_wgan_training,
gan_cifar.py: DIM 128, kernels of 5, batch norm in G alone, penalty 10, Adam 1e-4, batch 64. Its betas are (0, 0.9) in
the paper and (0.5, 0.9) in the code; these are the code's. ``wgan-gp-mlp`` has the networks of workload ``mlp``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan.benchmarks.baselines import mlp
from fastgan.benchmarks.rungs import Rung, TrainingStep

LATENT, CRITIC_UPDATES, PENALTY = 128, 5, 10.0


def generator(width: int = 128) -> nn.Sequential:
    """Return G: z (batch, 128) -> images (batch, 3, 32, 32) in [-1, 1]."""
    layers: list[nn.Module] = [nn.Linear(LATENT, 64 * width), nn.BatchNorm1d(64 * width), nn.ReLU()]
    layers += [nn.Unflatten(1, (4 * width, 4, 4))]
    for before, after in ((4 * width, 2 * width), (2 * width, width)):
        layers += [nn.ConvTranspose2d(before, after, 5, 2, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 5, 2, 2, 1), nn.Tanh())


def critic(width: int = 128) -> nn.Sequential:
    """Return D: images (batch, 3, 32, 32) -> scores (batch, 1)."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 5, 2, 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, 1))


def build(rung: Rung, batch: int, width: int = 128) -> TrainingStep:
    """Return one step of the convolutional networks."""
    return training(rung, batch, generator(width), critic(width), LATENT, (3, 32, 32))


def build_mlp(rung: Rung, batch: int) -> TrainingStep:
    """Return one step of the fully connected networks."""
    return training(rung, batch, mlp.generator(), mlp.discriminator(), mlp.LATENT, (mlp.IMAGE,))


def training(
    rung: Rung, batch: int, net_g: nn.Module, net_d: nn.Module, latent: int, sample: tuple[int, ...]
) -> TrainingStep:
    """Return one step: five updates of the critic, each on samples of its own, then one of G."""
    net_g, net_d = rung.network(net_g), rung.network(net_d)
    opt_g = rung.adam(net_g.parameters(), lr=1e-4, betas=(0.5, 0.9))
    opt_d = rung.adam(net_d.parameters(), lr=1e-4, betas=(0.5, 0.9))
    weights = list(net_d.parameters())
    z = torch.randn(CRITIC_UPDATES + 1, batch, latent, device=rung.device)
    real = torch.rand(CRITIC_UPDATES, batch, *sample, device=rung.device) * 2 - 1
    alpha = torch.rand(CRITIC_UPDATES, batch, *[1] * len(sample), device=rung.device)

    def score(images: Tensor) -> Tensor:
        with rung.autocast():
            scores: Tensor = net_d(images)
        return scores.float()

    def update_critic(z: Tensor, real: Tensor, alpha: Tensor) -> Tensor:
        with torch.no_grad(), rung.autocast():
            fake = net_g(z)
        opt_d.zero_grad()
        loss = score(fake).mean() - score(real).mean()
        (loss + PENALTY * gradient_penalty(score, alpha * real + (1 - alpha) * fake)).backward()
        opt_d.step()
        return loss.detach()

    def update_generator(z: Tensor) -> Tensor:
        opt_g.zero_grad()
        for weight in weights:
            weight.requires_grad_(False)
        with rung.autocast():
            fake = net_g(z)
        loss = -score(fake).mean()
        loss.backward()
        opt_g.step()
        for weight in weights:
            weight.requires_grad_(True)
        return loss.detach()

    def step() -> tuple[Tensor, ...]:
        losses = [update_critic(z[at], real[at], alpha[at]) for at in range(CRITIC_UPDATES)]
        return torch.stack(losses).mean(), update_generator(z[CRITIC_UPDATES])

    return TrainingStep(step, (net_g, net_d), (opt_g, opt_d), (z, real, alpha))


def gradient_penalty(score: Callable[[Tensor], Tensor], mixed: Tensor) -> Tensor:
    """Return the mean of (||gradient of the scores|| - 1)^2 at points between real and fake samples."""
    mixed = mixed.detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(mixed).sum(), mixed, create_graph=True)
    return (slope.float().flatten(1).norm(dim=1) - 1).square().mean()
