"""The presets. Networks and figures are those of the public code or paper that each comment names."""

from __future__ import annotations

from fastgan.presets.config import Adam, Config, Network

PRESETS = {
    # small enough for a laptop: recognisable digits in a minute or two without a GPU
    "gan-digits": Config(
        preset="gan-digits",
        data="digits",
        z_dim=32,
        generator=Network("mlp", {"hidden": [128, 256, 256], "norm_eps": 1e-5}),
        discriminator=Network("mlp", {"hidden": [256, 128]}),
        steps=10_000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # PyTorch-GAN's gan.py: the generator is updated first, its BatchNorm1d(n, 0.8) sets eps
    "mlp": Config(
        preset="mlp",
        data="mnist",
        z_dim=100,
        updates="generator_first",
        steps=200_000,
        log_every=100,
        sample_every=2000,
        checkpoint_every=2000,
    ),
    # Radford et al. as in PyTorch's own example: one fake batch serves both updates
    "dcgan": Config(
        preset="dcgan",
        data="mnist",
        image_size=32,
        z_dim=100,
        generator=Network("dcgan"),
        discriminator=Network("dcgan"),
        updates="shared",
        batch_size=128,
        steps=20_000,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
    ),
    # eight Gaussians on a circle: mode collapse in two dimensions. Widths and Adam of the PacGAN and VEEGAN set-up
    "ring8": Config(
        preset="ring8",
        data="ring8",
        z_dim=2,
        generator=Network(
            "mlp", {"hidden": [400, 400, 400, 400], "norm_eps": 1e-5, "activation": "relu", "output": "none"}
        ),
        discriminator=Network("mlp", {"hidden": [200, 200, 200]}),
        generator_optimizer=Adam(lr=1e-4, betas=(0.8, 0.999)),
        discriminator_optimizer=Adam(lr=1e-4, betas=(0.8, 0.999)),
        batch_size=100,
        steps=15_000,
        threads=1,
        log_every=100,
        sample_every=1500,
        checkpoint_every=1500,
        samples=1000,
    ),
}

ALIASES = {"gan-mnist": "mlp"}
