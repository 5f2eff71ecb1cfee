"""Workload ``mlp`` as it is published: the loop of PyTorch-GAN's gan.py, one batch of it.

Its habits are kept: tensors are made on the host and sent to the device in each step, labels and latents among them;
D ends in a sigmoid; everything is fp32; and each step prints its losses, for which ``.item()`` waits for the device.
Without that last habit the same loop is timed a second time. The batch comes from the host's memory, as a DataLoader
gives it; what the DataLoader itself takes is not counted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.benchmarks.baselines import mlp
from fastgan.benchmarks.rungs import Rung, TrainingStep


def build(rung: Rung, batch: int, items: bool = True, fixed: bool = False) -> TrainingStep:
    """Return one step; ``items``: with its ``.item()`` calls; ``fixed``: on the same latents each time, for checks."""
    device = rung.device
    generator = mlp.generator().to(device)
    discriminator = nn.Sequential(mlp.discriminator(), nn.Sigmoid()).to(device)
    adversarial_loss = nn.BCELoss().to(device)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    same = torch.randn(batch, mlp.LATENT, device=device)  # as the ladder's rungs draw theirs, for the check
    imgs = (torch.rand(batch, mlp.IMAGE, device=device) * 2 - 1).cpu()
    printed: list[str] = []

    def step() -> tuple[Tensor, ...]:
        valid = torch.empty(imgs.size(0), 1).fill_(1.0).to(device)
        fake = torch.empty(imgs.size(0), 1).fill_(0.0).to(device)
        real_imgs = imgs.to(device)

        optimizer_g.zero_grad()
        z = same if fixed else torch.from_numpy(np.random.normal(0, 1, (imgs.shape[0], mlp.LATENT))).float().to(device)
        gen_imgs = generator(z)
        g_loss = adversarial_loss(discriminator(gen_imgs), valid)
        g_loss.backward()
        optimizer_g.step()

        optimizer_d.zero_grad()
        real_loss = adversarial_loss(discriminator(real_imgs), valid)
        fake_loss = adversarial_loss(discriminator(gen_imgs.detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        d_loss.backward()
        optimizer_d.step()

        if items:
            printed[:] = [f"[D loss: {d_loss.item():f}] [G loss: {g_loss.item():f}]"]
        return g_loss.detach(), d_loss.detach()

    return TrainingStep(step, (generator, discriminator), (optimizer_g, optimizer_d), (same, imgs))
