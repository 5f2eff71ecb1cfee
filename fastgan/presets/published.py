"""Presets of the literature: each a few lines, with the paper or the authors' code that its figures are of."""

from __future__ import annotations

from fastgan.presets.config import Config
from fastgan.presets.groups import Average, CriticWarmup, Network, Optimizer, Penalty, Schedule

EPOCH = 500  # batches of 100 in 50,000 images
DECAY = 2_878_237  # steps in which a rate divided by 1.000004 at each falls by 1e5: log(1e5) / log(1.000004)
SATURATES = Schedule(0.7, 249 * EPOCH, EPOCH)  # the momentum, from epoch 1 to epoch 250


def _mixture(name: str) -> Config:
    """The GAN of PacGAN's Table 1 (Lin et al., 2018, appendix B) by its authors' code: pacgan_task.py and bricks.py.

    There both players move at once, by the same fake batch; 400 epochs of 100,000 samples, a figure for each. Batch
    norm stands behind all hidden layers of G, and all weights begin as N(0, .02).
    """
    adam = Optimizer(lr=1e-4, betas=(0.8, 0.999))
    of_g = {"hidden": [400] * 4, "norm_first": True, "norm_eps": 1e-4, "activation": "relu", "output": "none"}
    return Config(
        preset=name,
        data=name,
        z_dim=2,
        generator=Network("mlp", {**of_g, "init_std": 0.02}),
        discriminator=Network("mlp", {"hidden": [200] * 3, "maxout": 5, "init_std": 0.02}),
        updates="generator_first",
        generator_optimizer=adam,
        discriminator_optimizer=adam,
        batch_size=100,
        steps=400_000,
        threads=1,
        log_every=100,
        sample_every=20_000,
        checkpoint_every=20_000,
        samples=1000,
    )


POINTS = {"ring8": _mixture("ring8"), "grid25": _mixture("grid25")}

IMAGES = {
    # Goodfellow et al., 2014, by the authors' mnist.yaml, where both players move at once and D's loss is halved: under
    # SGD half the learning rate is the same. The file names no end; 250 epochs, when the momentum is at its last
    "gan-mnist-2014": Config(
        preset="gan-mnist-2014",
        data="mnist",
        limit=50_000,
        z_dim=100,
        latent="uniform",
        generator=Network("goodfellow"),
        discriminator=Network("goodfellow"),
        updates="generator_first",
        generator_optimizer=Optimizer("sgd", lr=0.1, momentum=0.5),
        discriminator_optimizer=Optimizer("sgd", lr=0.05, momentum=0.5),
        schedules={
            "generator_lr": Schedule(1e-6, DECAY, shape="exponential"),
            "discriminator_lr": Schedule(0.5e-6, DECAY, shape="exponential"),
            "generator_momentum": SATURATES,
            "discriminator_momentum": SATURATES,
        },
        batch_size=100,
        steps=250 * EPOCH,
        log_every=100,
        sample_every=10 * EPOCH,
        checkpoint_every=10 * EPOCH,
    ),
    # Radford et al., 2015, as in PyTorch's own example, on pictures of one's own
    "dcgan-64": Config(
        preset="dcgan-64",
        data="folder:pictures",
        image_size=64,
        z_dim=100,
        generator=Network("dcgan"),
        discriminator=Network("dcgan"),
        updates="shared",
        batch_size=128,
        steps=40_000,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # Arjovsky et al., 2017, algorithm 1, with the schedule of the authors' main.py; networks of PyTorch-GAN's wgan.py
    "wgan": Config(
        preset="wgan",
        data="mnist",
        z_dim=100,
        objective="wasserstein",
        n_critic=5,
        critic_warmup=CriticWarmup(updates=100, first=25, every=500),
        clip=0.01,
        generator_optimizer=Optimizer("rmsprop", lr=5e-5),
        discriminator_optimizer=Optimizer("rmsprop", lr=5e-5),
        steps=40_000,
        log_every=50,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    # Gulrajani et al., 2017, algorithm 1: no norm in the critic; the width is that of the authors' gan_mnist.py, and so
    # is beta1, where the paper's last version has 0
    "wgan-gp": Config(
        preset="wgan-gp",
        data="mnist",
        image_size=32,
        z_dim=128,
        generator=Network("dcgan"),
        discriminator=Network("dcgan", {"norm": False}),
        objective="wasserstein",
        penalty=Penalty("gradient_penalty", 10.0),
        n_critic=5,
        generator_optimizer=Optimizer(lr=1e-4, betas=(0.5, 0.9)),
        discriminator_optimizer=Optimizer(lr=1e-4, betas=(0.5, 0.9)),
        steps=20_000,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
    ),
    # Mao et al., 2017, eq. 9 with DCGAN's networks and rates (section 4)
    "lsgan": Config(
        preset="lsgan",
        data="mnist",
        image_size=32,
        z_dim=100,
        generator=Network("dcgan"),
        discriminator=Network("dcgan"),
        objective="least_squares",
        steps=20_000,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
    ),
    # Huang et al., 2024 (R3GAN), at small size: pairs are compared, R1 and R2 with gamma 1, no norms, no momentum,
    # averaged weights; DCGAN's plain networks in place of theirs
    "rpgan-r1r2": Config(
        preset="rpgan-r1r2",
        data="mnist",
        image_size=32,
        z_dim=64,
        generator=Network("dcgan", {"width": 32, "norm": False, "activation": "leaky_relu"}),
        discriminator=Network("dcgan", {"width": 32, "norm": False}),
        objective="relativistic",
        penalty=Penalty("r1_r2", 1.0),
        generator_optimizer=Optimizer(lr=2e-4, betas=(0.0, 0.99)),
        discriminator_optimizer=Optimizer(lr=2e-4, betas=(0.0, 0.99)),
        ema=Average(0.999),
        steps=20_000,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
    ),
}
