"""Workload ``ring-8``: points in a plane, from eight Gaussians on a circle.

Source: the set-up of VEEGAN and PacGAN: G 2-400-400-400-400-2, ReLU, here with batch norm on all hidden layers but the
first; D 2-200-200-200-1, here with LeakyReLU 0.2 in place of maxout; Adam 1e-4 (0.8, 0.999); batch 100. Each update has
fakes of its own, where preset ``ring8`` has both players move at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.benchmarks.rungs import Rung, TrainingStep

LATENT, POINT = 2, 2


def generator() -> nn.Module:
    """Return G: z (batch, 2) -> points (batch, 2)."""
    layers: list[nn.Module] = [nn.Linear(LATENT, 400), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(400, 400), nn.BatchNorm1d(400), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(400, POINT))


def discriminator() -> nn.Module:
    """Return D: points (batch, 2) -> logits (batch, 1)."""
    layers: list[nn.Module] = []
    for before, after in ((POINT, 200), (200, 200), (200, 200)):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(200, 1))


def build(rung: Rung, batch: int) -> TrainingStep:
    """Return one step: D's update on real and fake points, then G's on fresh fakes."""
    net_g, net_d = rung.network(generator()), rung.network(discriminator())
    opt_g = rung.adam(net_g.parameters(), lr=1e-4, betas=(0.8, 0.999))
    opt_d = rung.adam(net_d.parameters(), lr=1e-4, betas=(0.8, 0.999))
    z = torch.randn(2, batch, LATENT, device=rung.device)
    angles = torch.randint(8, (batch,), device=rung.device) * (torch.pi / 4)
    real = torch.stack([angles.cos(), angles.sin()], 1)
    real += 0.01 * torch.randn(batch, POINT, device=rung.device)
    ones, zeros = torch.ones(batch, 1, device=rung.device), torch.zeros(batch, 1, device=rung.device)

    def loss(points: Tensor, target: Tensor) -> Tensor:
        with rung.autocast():
            logits = net_d(points)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    def step() -> tuple[Tensor, ...]:
        with torch.no_grad(), rung.autocast():
            fake = net_g(z[0])
        opt_d.zero_grad()
        loss_d = loss(real, ones) + loss(fake, zeros)
        loss_d.backward()
        opt_d.step()

        opt_g.zero_grad()
        with rung.autocast():
            fake = net_g(z[1])
        loss_g = loss(fake, ones)
        loss_g.backward()
        opt_g.step()
        return loss_d.detach(), loss_g.detach()

    return TrainingStep(step, (net_g, net_d), (opt_g, opt_d), (z, real))
