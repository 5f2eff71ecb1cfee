"""The iteration of noise-contrastive estimation: a discriminator against noise that never learns.

Gutmann and Hyvarinen, 2010, "Noise-contrastive estimation"; with several noise samples for each of the data, 2012, JMLR
13. The generator is the noise, the discriminator's place has log p(x), whose normaliser is one more parameter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.models.nce import Noise
from fastgan.ops import unit_gradient
from fastgan.presets import Config
from fastgan.train.contrast import Ask, Contrast, expect
from fastgan.train.step import Pattern, Players

MOST = 200_000  # samples that the noise is fitted to


class NCE(Contrast):
    """One step of log p(x) down -E_data log h - ratio E_noise log(1 - h), h = sigmoid(log p - log(ratio p_noise)).

    In the metrics ``loss_d`` is that loss, ``d_real`` and ``d_fake`` are the means of h.
    """

    @classmethod
    def prepare(cls, config: Config, players: Players, samples: Dataset) -> None:
        """Fit the noise to the data."""
        if not isinstance(players.generator, Noise):
            raise UserError("nce has noise of its own: leave generator away, and choose its law by latent")
        every = max(1, len(samples) // MOST)
        players.generator.fit(samples.images[::every].to(players.generator.loc.device), config.latent, config.noise)

    @property
    def noise(self) -> Noise:
        """The generator."""
        generator = self.players.generator
        assert isinstance(generator, Noise)
        return generator

    def logits(self, points: Tensor) -> Tensor:
        """Log odds that points ``(n, d)`` are data, in float32."""
        return self.judge(points) - self.noise.log_density(points) - math.log(self.noise.ratio)

    def _fresh(self, pattern: Pattern) -> None:
        with torch.no_grad():
            noise = self.noise(self.draws.z(0).float())
        real_logits, noise_logits = self.logits(self.draws.real(0)), self.logits(noise)
        loss = F.softplus(-real_logits).mean() + self.noise.ratio * F.softplus(noise_logits).mean()
        self._to_discriminator.form([loss], [unit_gradient(loss)])
        self.players.discriminator_optimizer.step()
        self._to_discriminator.clear()
        self._end({"loss_d": loss.detach(), **self.losses.scores(real_logits.detach(), noise_logits.detach())}, {})

    def fit_together(self, ask: Ask, z: Tensor, sample_shape: tuple[int, ...]) -> None:
        """A number for each point."""
        points = ask("generator", self.noise, z)
        expect("discriminator", ask("discriminator", self.judge, points), points, (len(points),), "log densities")
