"""Workload ``dcgan``: the convolutional GAN of PyTorch's own example, on images of a side of 4 times a power of two.

Source: pytorch/examples, dcgan: G of transposed convolutions (kernel 4) with batch norm and ReLU, tanh at the end; D
mirrored, LeakyReLU 0.2, no norm on its first layer; no bias; weights N(0, .02), the norms' N(1, .02); Adam 2e-4
(0.5, 0.999); D is updated first, and one batch of fakes serves both. The losses take logits: autocast refuses the
binary cross-entropy of probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.benchmarks.rungs import Rung, TrainingStep

LATENT, CHANNELS = 100, 3


def widths(side: int, width: int) -> list[int]:
    """Return the hidden channels from the image's side down to 4x4."""
    return [width * 2**level for level in range((side // 4).bit_length() - 1)]


def generator(side: int, width: int = 64) -> nn.Module:
    """Return G: z (batch, 100, 1, 1) -> images (batch, 3, side, side) in [-1, 1]."""
    layers: list[nn.Module] = []
    before, stride, padding = LATENT, 1, 0
    for features in reversed(widths(side, width)):
        layers += [nn.ConvTranspose2d(before, features, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
        before, stride, padding = features, 2, 1
    layers += [nn.ConvTranspose2d(before, CHANNELS, 4, stride, padding, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).apply(initialise)


def discriminator(side: int, width: int = 64) -> nn.Module:
    """Return D: images (batch, 3, side, side) -> logits (batch,)."""
    first, *others = widths(side, width)
    layers: list[nn.Module] = [nn.Conv2d(CHANNELS, first, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    before = first
    for features in others:
        layers += [nn.Conv2d(before, features, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(features), nn.LeakyReLU(0.2, inplace=True)]
        before = features
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, bias=False), nn.Flatten(0)).apply(initialise)


def initialise(module: nn.Module) -> None:
    """Draw a layer's weights as published."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def build(rung: Rung, batch: int, side: int = 64, width: int = 64) -> TrainingStep:
    """Return one step: D's update on real and fake images, then G's through D on the same fakes."""
    net_g, net_d = rung.network(generator(side, width)), rung.network(discriminator(side, width))
    opt_g = rung.adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = rung.adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    z = torch.randn(batch, LATENT, 1, 1, device=rung.device)
    real = torch.rand(batch, CHANNELS, side, side, device=rung.device) * 2 - 1
    if rung.tuned:
        real = real.to(memory_format=torch.channels_last)
    ones, zeros = torch.ones(batch, device=rung.device), torch.zeros(batch, device=rung.device)

    def loss(images: Tensor, target: Tensor) -> Tensor:
        with rung.autocast():
            logits = net_d(images)
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    def step() -> tuple[Tensor, ...]:
        with rung.autocast():
            fake = net_g(z)
        opt_d.zero_grad()
        loss_d = loss(real, ones) + loss(fake.detach(), zeros)
        loss_d.backward()
        opt_d.step()

        opt_g.zero_grad()
        loss_g = loss(fake, ones)
        loss_g.backward()
        opt_g.step()
        return loss_d.detach(), loss_g.detach()

    return TrainingStep(step, (net_g, net_d), (opt_g, opt_d), (z, real))
