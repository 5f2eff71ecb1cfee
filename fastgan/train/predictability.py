"""The iteration of predictability minimization: an adversarial game about codes of the data, of which none are made.

Schmidhuber, 1992, "Learning factorial codes by predictability minimization", Neural Computation 4(6), 863-879. The
generator is the encoder of data into codes, the discriminator's place have the predictors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.objectives import gradient_norm
from fastgan.ops import unit_gradient
from fastgan.train.contrast import Ask, Contrast, expect
from fastgan.train.step import Pattern


class Predictability(Contrast):
    """``n_critic`` steps of the predictors down V = sum over units of (predicted - code)^2, and one of the encoder up.

    V is a mean over samples. In the metrics ``loss_d`` is V at the predictors' last step, ``loss_g`` is -V at the
    encoder's. Where the predictions are the best ones, V is the expected variance of each unit given the others: it is
    highest where units are 0 or 1 as often, whatever the others are.
    """

    def error(self, codes: Tensor) -> Tensor:
        """V of codes ``(n, units)``."""
        return (self.judge(codes) - codes.float()).square().sum(1).mean()

    def _fresh(self, pattern: Pattern) -> None:
        for at in range(self.n_critic):
            real = self.draws.real(at)
            with torch.no_grad():
                codes = self.generate(real)
            loss = self.error(codes)
            self._to_discriminator.form([loss], [unit_gradient(loss)])
            self.players.discriminator_optimizer.step()
            self._to_discriminator.clear()
            seen = {"loss_d": loss.detach()}
            self._next_update(at, seen, pattern)
        with self._frozen_discriminator():
            loss = -self.error(self.generate(real))
            self._to_generator.form([loss], [unit_gradient(loss)])
        if pattern.watched:
            seen["gradient_g"] = gradient_norm(self.players.generator.parameters())
        self.players.generator_optimizer.step()
        self._to_generator.clear()
        self._end(seen, {"loss_g": loss.detach()})

    def fit_together(self, ask: Ask, z: Tensor, sample_shape: tuple[int, ...]) -> None:
        """A code for each sample, and a prediction for each unit."""
        samples = z.new_zeros(len(z), *sample_shape)
        codes = ask("generator", self.generate, samples)
        expect("generator", codes, samples, tuple(z.shape), "codes")
        expect("discriminator", ask("discriminator", self.judge, codes), codes, tuple(z.shape), "predictions")
