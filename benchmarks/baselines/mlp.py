"""Workload ``mlp``: the fully connected GAN on 28x28 images that many people begin with.

Source: PyTorch-GAN, gan.py: G 100-128-256-512-1024-784 with BatchNorm1d(n, 0.8) (which sets eps), D 784-512-256-1,
LeakyReLU 0.2, Adam 2e-4 (0.5, 0.999), the generator updated first. The losses take logits: autocast refuses the binary
cross-entropy of probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.benchmarks.rungs import Rung, TrainingStep

LATENT, IMAGE = 100, 28 * 28


def generator() -> nn.Module:
    """Return G: z (batch, 100) -> images (batch, 784) in [-1, 1]."""
    layers: list[nn.Module] = [nn.Linear(LATENT, 128), nn.LeakyReLU(0.2)]
    for width in (128, 256, 512):
        layers += [nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width, 0.8), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(1024, IMAGE), nn.Tanh())


def discriminator() -> nn.Module:
    """Return D: images (batch, 784) -> logits (batch, 1)."""
    return nn.Sequential(
        nn.Linear(IMAGE, 512), nn.LeakyReLU(0.2), nn.Linear(512, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1)
    )


def build(rung: Rung, batch: int) -> TrainingStep:
    """Return one step: the generator's update, then the discriminator's on the same fakes."""
    net_g, net_d = rung.network(generator()), rung.network(discriminator())
    opt_g = rung.adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = rung.adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    z = torch.randn(batch, LATENT, device=rung.device)
    real = torch.rand(batch, IMAGE, device=rung.device) * 2 - 1
    ones, zeros = torch.ones(batch, 1, device=rung.device), torch.zeros(batch, 1, device=rung.device)

    def loss(images: Tensor, target: Tensor) -> Tensor:
        with rung.autocast():
            logits = net_d(images)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    def step() -> tuple[Tensor, ...]:
        opt_g.zero_grad()
        with rung.autocast():
            fake = net_g(z)
        loss_g = loss(fake, ones)
        loss_g.backward()
        opt_g.step()

        opt_d.zero_grad()
        loss_d = (loss(real, ones) + loss(fake.detach(), zeros)) / 2
        loss_d.backward()
        opt_d.step()
        return loss_g.detach(), loss_d.detach()

    return TrainingStep(step, (net_g, net_d), (opt_g, opt_d), (z, real))
