"""Workload ``dcgan`` as it is published: the loop of pytorch/examples' dcgan, one batch of it.

Its habits are kept: D ends in a sigmoid and is taught by two backward passes, real and fake; one tensor of labels is
filled three times; gradients that G's pass leaves in D are formed and thrown away; everything is fp32 and NCHW; each
step prints losses and scores, for which ``.item()`` waits for the device five times. Without that last habit the same
loop is timed a second time. The batch comes from the host's memory, as a DataLoader gives it; what the DataLoader
itself takes is not counted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.benchmarks.baselines import dcgan
from fastgan.benchmarks.rungs import Rung, TrainingStep


def build(
    rung: Rung,
    batch: int,
    side: int = 64,
    width: int = 64,
    items: bool = True,
    fixed: bool = False,
) -> TrainingStep:
    """Return one step; ``items``: with its ``.item()`` calls; ``fixed``: on the same latents each time, for checks."""
    device = rung.device
    net_g = dcgan.generator(side, width).to(device)
    net_d = nn.Sequential(dcgan.discriminator(side, width), nn.Sigmoid()).to(device)
    criterion = nn.BCELoss()
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    same = torch.randn(batch, dcgan.LATENT, 1, 1, device=device)  # as the ladder's rungs draw theirs, for the check
    data = (torch.rand(batch, dcgan.CHANNELS, side, side, device=device) * 2 - 1).cpu()
    printed: list[str] = []

    def step() -> tuple[Tensor, ...]:
        net_d.zero_grad()
        real = data.to(device)
        label = torch.full((real.size(0),), 1.0, dtype=real.dtype, device=device)
        output = net_d(real)
        loss_real = criterion(output, label)
        loss_real.backward()
        d_x = output.mean().item() if items else 0.0

        noise = same if fixed else torch.randn(real.size(0), dcgan.LATENT, 1, 1, device=device)
        fake = net_g(noise)
        label.fill_(0.0)
        output = net_d(fake.detach())
        loss_fake = criterion(output, label)
        loss_fake.backward()
        d_g_z1 = output.mean().item() if items else 0.0
        loss_d = loss_real + loss_fake
        optimizer_d.step()

        net_g.zero_grad()
        label.fill_(1.0)
        output = net_d(fake)
        loss_g = criterion(output, label)
        loss_g.backward()
        d_g_z2 = output.mean().item() if items else 0.0
        optimizer_g.step()

        if items:
            scores = f"D(x): {d_x:.4f} D(G(z)): {d_g_z1:.4f} / {d_g_z2:.4f}"
            printed[:] = [f"Loss_D: {loss_d.item():.4f} Loss_G: {loss_g.item():.4f} {scores}"]
        return loss_d.detach(), loss_g.detach()

    return TrainingStep(step, (net_g, net_d), (optimizer_g, optimizer_d), (same, data))
