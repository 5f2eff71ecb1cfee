"""Workload ``gan-digits``: the loop that a PyTorch user writes by hand for preset ``gan-digits``, on a CPU.

G 32-128-256-256-64 with batch norm on all hidden layers but the first, D 64-256-128-1, LeakyReLU 0.2, tanh; batch 64,
Adam 2e-4 (0.5, 0.999), fused; fresh noise for each update; each epoch a permutation of its own. Seeds are used as
``fastgan.Trainer`` says that it uses them, so that both train the same networks on the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT, BATCH = 32, 64


def generator(pixels: int) -> nn.Module:
    """Return G: z (batch, 32) -> images (batch, pixels) in [-1, 1]."""
    layers: list[nn.Module] = [nn.Linear(LATENT, 128), nn.LeakyReLU(0.2)]
    for before, after in ((128, 256), (256, 256)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(256, pixels), nn.Tanh())


def discriminator(pixels: int) -> nn.Module:
    """Return D: images (batch, pixels) -> logits (batch, 1)."""
    return nn.Sequential(
        nn.Linear(pixels, 256), nn.LeakyReLU(0.2), nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
    )


class Loop:
    """A training by hand that can be gone on with."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self.images, self.seed, self.done = images.flatten(1), seed, 0
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.g, self.d = generator(self.images.shape[1]), discriminator(self.images.shape[1])
        self.opt_g = torch.optim.Adam(self.g.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
        self.opt_d = torch.optim.Adam(self.d.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
        self.noise = torch.Generator().manual_seed(seed + 1)
        self.ones, self.zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
        self.order = torch.empty(0, dtype=torch.int64)

    def fit(self, steps: int) -> tuple[float, float]:
        """Train for so many steps; return the means of both losses."""
        sum_d = sum_g = 0.0
        batches = len(self.images) // BATCH
        for _ in range(steps):
            epoch, at = divmod(self.done, batches)
            if at == 0:
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
                self.order = torch.from_numpy(order)
            real = self.images[self.order[at * BATCH : (at + 1) * BATCH]].float() / 127.5 - 1

            with torch.no_grad():
                fake = self.g(torch.randn(BATCH, LATENT, generator=self.noise))
            self.opt_d.zero_grad()
            loss_d = F.binary_cross_entropy_with_logits(self.d(real), self.ones)
            loss_d = loss_d + F.binary_cross_entropy_with_logits(self.d(fake), self.zeros)
            loss_d.backward()
            self.opt_d.step()

            self.opt_g.zero_grad()
            fake = self.g(torch.randn(BATCH, LATENT, generator=self.noise))
            loss_g = F.binary_cross_entropy_with_logits(self.d(fake), self.ones)
            loss_g.backward()
            self.opt_g.step()

            sum_d, sum_g, self.done = sum_d + loss_d.item(), sum_g + loss_g.item(), self.done + 1
        return sum_d / steps, sum_g / steps
