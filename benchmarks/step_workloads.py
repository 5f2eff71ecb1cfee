"""The training steps that suite ``step`` races and ``launch_list`` counts.

Each is there twice: by the engine, and as PyTorch users write it. The data are random: what they show changes nothing
in a step's work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan.benchmarks.baselines import dcgan, dcgan_example, gan_py, mlp, ring8, wgan_gp
from fastgan.benchmarks.rungs import Rung, TrainingStep

if TYPE_CHECKING:
    from fastgan.presets import Config
    from fastgan.train import Trainer

SAMPLES = 8192  # in the data set: more than any batch, few enough to be drawn in no time
SWEEP = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Workload:
    """One training step, twice: ``build`` is the baseline's on a rung, ``config`` the engine's."""

    name: str
    line: str
    batch: int  # that of the published code
    sample: tuple[int, ...]
    build: Callable[..., TrainingStep]  # of (rung, batch=)
    config: Callable[[], Config]
    batches: tuple[int, ...] = SWEEP
    networks: Callable[[], tuple[nn.Module, nn.Module]] | None = None  # None: those of the configuration
    published: Callable[..., TrainingStep] | None = None  # the loop as it stands in public, of (rung, batch=, items=)
    halved: bool = False  # the baseline's first loss is G's, its second half of D's

    def baseline(self, rung: Rung, batch: int) -> TrainingStep:
        """Return the baseline's step."""
        return self.build(rung, batch=batch)

    def data(self, device: torch.device) -> Tensor:
        """Return a data set of random images, uint8, or of random points."""
        if len(self.sample) == 1:
            return torch.rand(SAMPLES, *self.sample, device=device) * 2 - 1
        return torch.randint(0, 256, (SAMPLES, *self.sample), device=device, dtype=torch.uint8)

    def trainer(self, batch: int, device: torch.device, **keys: Any) -> Trainer:
        """Return the engine, ready to step; on a GPU its convolutions lie channels_last."""
        from fastgan.train import Trainer
        from fastgan.train.capture import runner_for

        own: dict[str, Any] = dict(
            zip(("generator", "discriminator"), self.networks() if self.networks else (), strict=False)
        )
        for network in own.values():
            if runner_for(device) is not None:
                network.to(memory_format=torch.channels_last)
        keys = {"batch_size": batch, "device": str(device), "seed": 0, **keys}
        return Trainer(replace(self.config(), threads=0), data=self.data(device), **own, **keys)

    def losses(self, loss_d: Tensor, loss_g: Tensor) -> Tensor:
        """Return the engine's losses as the baseline has them."""
        return torch.stack([loss_g, loss_d / 2] if self.halved else [loss_d, loss_g])


def workloads(small: bool = False) -> tuple[Workload, ...]:
    """Return all of them, what matters most first; ``small``: narrow convolutions, for a smoke test."""
    narrow: dict[str, Any] = {"width": 8} if small else {}
    critic = "improved_wgan_training's networks for CIFAR (DIM 128), 5 critic updates, gradient penalty"
    sides = tuple(
        Workload(
            f"dcgan-{side}",
            f"DCGAN on {side}x{side}x3, one batch of fakes for both updates",
            128,
            (3, side, side),
            functools.partial(dcgan.build, side=side, **narrow),
            functools.partial(convolutional, side, **narrow),
            (16, 64, 128, 256, 512, 1024),
            published=functools.partial(dcgan_example.build, side=side, **narrow),
        )
        for side in (64, 32)
    )
    return (
        Workload(
            "mlp",
            "PyTorch-GAN's gan.py, G updated first",
            64,
            (1, 28, 28),
            mlp.build,
            functools.partial(named, "mlp"),
            published=gan_py.build,
            halved=True,
        ),
        sides[0],
        Workload(
            "wgan-gp",
            critic,
            64,
            (3, 32, 32),
            functools.partial(wgan_gp.build, **narrow),
            functools.partial(penalised, wgan_gp.LATENT),
            networks=functools.partial(chains, **narrow),
        ),
        Workload(
            "wgan-gp-mlp",
            "the networks of mlp, 5 critic updates, gradient penalty: nobody's published code",
            64,
            (1, 28, 28),
            wgan_gp.build_mlp,
            functools.partial(penalised, mlp.LATENT),
        ),
        Workload(
            "ring-8",
            "points in a plane, fresh fakes for each update",
            100,
            (2,),
            ring8.build,
            ring,
            (16, 100, 256, 1024),
        ),
        sides[1],
    )


def named(preset: str) -> Config:
    """Return a preset."""
    from fastgan import presets

    return presets.preset(preset)


def ring() -> Config:
    """Return preset ``ring8`` with the networks of the baseline, and fresh fakes for each update."""
    from fastgan.presets import Network

    hidden = {"hidden": [400] * 4, "norm_eps": 1e-5, "activation": "relu", "output": "none"}
    critic = Network("mlp", {"hidden": [200] * 3})
    return replace(named("ring8"), updates="fresh", generator=Network("mlp", hidden), discriminator=critic)


def convolutional(side: int, width: int = 64) -> Config:
    """Return DCGAN's preset for images of that side."""
    options = {"width": width, "max_width": 16 * width}
    config = named("dcgan")
    networks = {name: replace(getattr(config, name), options=options) for name in ("generator", "discriminator")}
    return replace(config, image_size=side, **networks)


def penalised(latent: int) -> Config:
    """Return a configuration of WGAN-GP, its networks those of preset ``mlp`` unless others are given."""
    from fastgan.presets import Config, Optimizer, Penalty

    adam = Optimizer(lr=1e-4, betas=(0.5, 0.9))
    return Config(
        preset="wgan-gp",
        z_dim=latent,
        objective="wasserstein",
        penalty=Penalty("gradient_penalty", wgan_gp.PENALTY),
        n_critic=wgan_gp.CRITIC_UPDATES,
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )


def chains(width: int = 128) -> tuple[nn.Module, nn.Module]:
    """Return WGAN-GP's networks as a user of this library writes them: the same members in a Chain."""
    from fastgan.nn import Chain

    return Chain(*wgan_gp.generator(width)), Chain(*wgan_gp.critic(width))
