"""The presets. Networks and figures are those of the public code or paper that each comment names."""

from __future__ import annotations

from dataclasses import replace

from fastgan.presets.config import Config
from fastgan.presets.groups import Average, Network, Optimizer, Penalty, Schedule
from fastgan.presets.published import IMAGES, POINTS

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
    **POINTS,
    **IMAGES,
    # Xu et al., 2019, section 4.4: a table of mixed columns; 300 epochs of batches of 500 are 3,000 steps of these rows
    "ctgan": Config(
        preset="ctgan",
        data="people",
        z_dim=128,
        generator=Network("ctgan"),
        discriminator=Network("ctgan"),
        objective="wasserstein",
        penalty=Penalty("gradient_penalty", 10.0),
        pac=10,
        generator_optimizer=Optimizer(lr=2e-4, betas=(0.5, 0.9), weight_decay=1e-6),
        discriminator_optimizer=Optimizer(lr=2e-4, betas=(0.5, 0.9), weight_decay=1e-6),
        batch_size=500,
        steps=3000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # a DCGAN of three digits at once, 1,000 modes; for a CPU a quarter as wide as DCGAN, a tenth of PacGAN's 50 epochs
    "stacked-mnist": Config(
        preset="stacked-mnist",
        data="stacked-mnist",
        image_size=32,
        z_dim=100,
        generator=Network("dcgan", {"width": 16}),
        discriminator=Network("dcgan", {"width": 16}),
        updates="shared",
        batch_size=64,
        steps=10_000,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # PyTorch-GAN's cgan.py; there hidden [128, 256, 512, 1024] and [512, 512, 512], z_dim 100, on mnist, norms' eps is
    # .8 (a momentum, meant), and G moves first, by the samples that D sees next (updates=generator_first)
    "cgan": Config(
        preset="cgan",
        data="digits",
        z_dim=32,
        generator=Network("cgan", {"hidden": [128, 256, 256]}),
        discriminator=Network("cgan", {"hidden": [256, 256, 256]}),
        objective="least_squares",
        steps=10_000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
        samples=80,
    ),
    # Odena et al., 2017; there z_dim 100, dropout .5 and, for 32x32, a generator of width 96 and a discriminator of 16
    "acgan": Config(
        preset="acgan",
        data="digits",
        z_dim=32,
        generator=Network("acgan", {"width": 64}),
        discriminator=Network("acgan", {"width": 32, "dropout": 0.2}),
        steps=5_000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
        samples=80,
    ),
    # Miyato et al., 2018: there width 256 and 128, z_dim 128, on 32x32, and no average of weights; generator=cresnet
    # discriminator=cresnet is told the classes (Miyato and Koyama, 2018)
    "hinge-sngan": Config(
        preset="hinge-sngan",
        data="digits",
        z_dim=32,
        generator=Network("resnet", {"width": 16}),
        discriminator=Network("resnet", {"width": 16}),
        objective="hinge",
        n_critic=5,
        generator_optimizer=Optimizer(lr=2e-4, betas=(0.0, 0.9)),
        discriminator_optimizer=Optimizer(lr=2e-4, betas=(0.0, 0.9)),
        ema=Average(decay=0.999),
        steps=3_000,
        threads=1,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
    ),
    # what GANs are compared with: Kingma and Welling, 2014, whose decoder is the generator of gan-digits, without norms
    "vae": Config(
        preset="vae",
        method="vae",
        data="digits",
        z_dim=8,
        generator=Network("mlp", {"hidden": [128, 256, 256], "norm": False}),
        discriminator=Network("encoder", {"hidden": [256, 256, 128], "std": 0.3}),
        generator_optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.999)),
        discriminator_optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.999)),
        steps=10_000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # Gutmann and Hyvarinen, 2010: the density of ring8 with noise on it, from five noise samples for each of the data
    "nce": Config(
        preset="nce",
        method="nce",
        data="ring8",
        noise=0.1,
        z_dim=10,
        generator=Network("nce"),
        discriminator=Network("nce", {"hidden": [128, 128, 128]}),
        discriminator_optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.999)),
        schedules={"discriminator_lr": Schedule(to=0.0, steps=10_000, shape="cosine")},
        batch_size=128,
        steps=10_000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # Schmidhuber, 1992: eight patterns into three binary units that know nothing of each other
    "predictability-minimization": Config(
        preset="predictability-minimization",
        method="predictability",
        data="patterns8",
        z_dim=3,
        generator=Network("predictability"),
        discriminator=Network("predictability", {"hidden": [32]}),
        n_critic=3,
        generator_optimizer=Optimizer(lr=1e-2),
        discriminator_optimizer=Optimizer(lr=1e-2),
        steps=3000,
        threads=1,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
}
# Lin et al., 2018, section 4.1: the same, but D judges two points at a time
PRESETS["pacgan"] = replace(PRESETS["ring8"], preset="pacgan", pac=2)

ALIASES = {"gan-mnist": "mlp"}

ABOUT = {  # a line each, as ``fastgan train`` lists them
    "gan-digits": "small enough for a laptop: recognisable digits in a minute or two without a GPU",
    "mlp": "fully connected, as PyTorch-GAN's gan.py",
    "dcgan": "convolutional, as PyTorch's example (Radford et al. 2015), at 32x32",
    "ring8": "eight Gaussians on a ring: the GAN of PacGAN's table of mode collapse",
    "grid25": "twenty-five Gaussians on a grid: the same GAN",
    "gan-mnist-2014": "the first GAN (Goodfellow et al. 2014): maxout, dropout, SGD with momentum",
    "dcgan-64": "DCGAN at 64x64 on pictures of yours: --data folder:PATH",
    "wgan": "a critic with clipped weights, trained further than G (Arjovsky et al. 2017)",
    "wgan-gp": "a critic under a gradient penalty, without norms (Gulrajani et al. 2017)",
    "lsgan": "DCGAN with the least squares objective (Mao et al. 2017)",
    "pacgan": "the GAN of ring8, whose D judges two points at a time (Lin et al. 2018)",
    "ctgan": "tables with columns of both kinds: --data csv:PATH (Xu et al. 2019)",
    "stacked-mnist": "three digits in an image, a thousand modes (Metz et al. 2017)",
    "cgan": "told the class, fully connected, as PyTorch-GAN's cgan.py (Mirza and Osindero 2014)",
    "acgan": "a discriminator that guesses the class, too (Odena et al. 2017)",
    "hinge-sngan": "a ResNet with spectral norm and the hinge objective (Miyato et al. 2018), small",
    "vae": "the contrast: an encoder, and gan-digits' generator as its decoder (Kingma and Welling 2014)",
    "nce": "a discriminator against noise that stands still: a density (Gutmann and Hyvarinen 2010)",
    "predictability-minimization": "factorial codes by a game of 1992 (Schmidhuber)",
    "rpgan-r1r2": "relativistic pairs under R1 and R2, the recipe of R3GAN (Huang et al. 2024), small",
}
