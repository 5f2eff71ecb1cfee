"""The Trainer against a plain loop that a PyTorch user would write: the same seed gives the same losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgan
from fastgan.presets import preset
from fastgan.train import conditions
from fastgan.train.draws import HostDraws


def plain_generator(z_dim, widths, features):
    layers, width = [], z_dim
    for index, out in enumerate(widths):
        layers.append(nn.Linear(width, out))
        if index > 0:
            layers.append(nn.BatchNorm1d(out, 0.8))
        layers.append(nn.LeakyReLU(0.2))
        width = out
    return nn.Sequential(*layers, nn.Linear(width, features), nn.Tanh())


def plain_discriminator(features, widths):
    layers, width = [], features
    for out in widths:
        layers += [nn.Linear(width, out), nn.LeakyReLU(0.2)]
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 1))


def plain_loop(images, *, device="cpu", seed, steps, batch, z_dim, hidden_g, hidden_d, updates):
    """Hand-written: torch.nn, torch.optim, F.binary_cross_entropy_with_logits. Returns [(loss_d, loss_g)]."""
    torch.manual_seed(seed)
    g, d = plain_generator(z_dim, hidden_g, 64), plain_discriminator(64, hidden_d)
    g, d = g.to(device), d.to(device)
    opt_g = torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    noise = torch.Generator(device).manual_seed(seed + 1)
    ones, zeros = torch.ones(batch, 1, device=device), torch.zeros(batch, 1, device=device)
    losses = []
    per_epoch = len(images) // batch
    for step in range(steps):
        epoch, index = divmod(step, per_epoch)
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(images)))
        rows = order[index * batch : (index + 1) * batch]
        real = images[rows.to(device)].flatten(1).float() / 127.5 - 1

        def update_d(fake, real=real):
            opt_d.zero_grad()
            loss = F.binary_cross_entropy_with_logits(d(real), ones)
            loss = loss + F.binary_cross_entropy_with_logits(d(fake.detach()), zeros)
            loss.backward()
            opt_d.step()
            return loss.item()

        def update_g(fake):
            opt_g.zero_grad()
            loss = F.binary_cross_entropy_with_logits(d(fake), ones)
            loss.backward()
            opt_g.step()
            return loss.item()

        fake = g(torch.randn(batch, z_dim, generator=noise, device=device))
        if updates == "generator_first":
            loss_g = update_g(fake)
            loss_d = update_d(fake)
        else:
            loss_d = update_d(fake)
            if updates == "fresh":
                fake = g(torch.randn(batch, z_dim, generator=noise, device=device))
            loss_g = update_g(fake)
        losses.append((loss_d, loss_g))
    return losses


def ours(*, device="cpu", seed, steps, batch, z_dim, hidden_g, hidden_d, updates):
    trainer = fastgan.Trainer(
        preset("gan-digits"),
        seed=seed,
        batch_size=batch,
        z_dim=z_dim,
        log_every=1,
        updates=updates,
        **{
            "generator.hidden": hidden_g,
            "generator.norm_eps": 0.8,
            "discriminator.hidden": hidden_d,
        },
        device=device,
        precision="fp32",
    )
    trainer.fit(steps, progress=False)
    return trainer.data.images, [(row["loss_d"], row["loss_g"]) for row in trainer.history]


@pytest.mark.parametrize("updates", ["fresh", "shared", "generator_first"])
def test_fifty_steps_agree(updates):
    settings = {"seed": 3, "steps": 50, "batch": 64, "z_dim": 32, "hidden_g": [64, 96, 128], "hidden_d": [96, 64]}
    images, losses = ours(**settings, updates=updates)
    expected = plain_loop(images, **settings, updates=updates)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "device, steps",
    [pytest.param("cpu", 4, marks=pytest.mark.interpret), pytest.param("cuda", 50, marks=pytest.mark.gpu)],
)
def test_the_kernels_agree(device, steps, monkeypatch):
    monkeypatch.setattr(conditions, "draws", lambda *parts: HostDraws(*parts[:4]))  # on a GPU too
    settings = {"seed": 4, "batch": 16, "z_dim": 8, "hidden_g": [16, 24], "hidden_d": [24], "updates": "shared"}
    with fastgan.backend("triton"):
        images, losses = ours(**settings, device=device, steps=steps)
    expected = plain_loop(images, **settings, device=device, steps=steps)
    tolerance = 1e-5 if device == "cpu" else 1e-3  # a GPU's own kernels sum in another order, and 50 steps amplify it
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=tolerance, atol=tolerance)
