"""The iteration of a variational autoencoder: a bound on the likelihood in place of an adversary.

Kingma and Welling, 2014, "Auto-Encoding Variational Bayes". The generator is the decoder, the discriminator's place has
the encoder. p(z) = N(0, I), q(z|x) = N(mean, variance) by the encoder, p(x|z) = N(G(z), std^2).
"""

from __future__ import annotations

import math

from torch import Tensor

from fastgan.objectives import gradient_norm
from fastgan.ops import unit_gradient
from fastgan.train.contrast import Ask, Contrast, expect, owned
from fastgan.train.step import Pattern

STD = 0.3  # of p(x|z), where the encoder is a network of the user's that has no ``std``


def divergence_of_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)) of each row ``(n, z_dim)``, in nats ``(n,)`` (appendix B)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def surprise(samples: Tensor, made: Tensor, std: float) -> Tensor:
    """-log N(samples; made, std^2) of each sample, over all its numbers, in nats ``(n,)``."""
    apart = (samples.float() - made.float()).flatten(1)
    return apart.square().sum(1) / (2 * std**2) + apart.shape[1] * math.log(std * math.sqrt(2 * math.pi))


class VAE(Contrast):
    """One step of both networks up the ELBO, E_q log p(x|z) - KL(q(z|x) || p(z)), with one z a sample (section 2.3).

    In the metrics ``loss_g`` is the negative ELBO, ``loss_d`` its first term -E log p(x|z), ``penalty`` the KL: nats a
    sample. The gradient comes back through z = mean + deviation * noise, and stops there once: the decoder's part is
    formed first, the encoder's goes on from what arrives at z.
    """

    def infer(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), ``(n, z_dim)`` each, in float32."""
        mean, log_variance = self.judge(samples).chunk(2, dim=1)
        return mean, log_variance

    @property
    def std(self) -> float:
        """The standard deviation of p(x|z)."""
        return owned(self.players.discriminator, "std", STD)

    def _fresh(self, pattern: Pattern) -> None:
        real = self.draws.real(0)
        mean, log_variance = self.infer(real)
        z = mean + (log_variance / 2).exp() * self.draws.z(0).float()
        leaf = z.detach().requires_grad_()
        reconstruction = surprise(real, self.generate(leaf), self.std).mean()
        at_z = self._to_generator.form([reconstruction], [unit_gradient(reconstruction)], leaf)
        assert at_z is not None
        divergence = divergence_of_prior(mean, log_variance).mean()
        self._to_discriminator.form([z, divergence], [at_z, unit_gradient(divergence)])
        seen = {"gradient_g": gradient_norm(self.players.generator.parameters())} if pattern.watched else {}
        for optimizer, gradients in (
            (self.players.generator_optimizer, self._to_generator),
            (self.players.discriminator_optimizer, self._to_discriminator),
        ):
            optimizer.step()
            gradients.clear()
        reconstruction, divergence = reconstruction.detach(), divergence.detach()
        self._end({"loss_d": reconstruction, "penalty": divergence}, {"loss_g": reconstruction + divergence, **seen})

    def fit_together(self, ask: Ask, z: Tensor, sample_shape: tuple[int, ...]) -> None:
        """A sample for each z, and a mean and a log variance for each of its numbers."""
        made = ask("generator", self.generate, z)
        expect("generator", made, z, (len(z), *sample_shape), "samples")
        law = ask("discriminator", self.judge, made)
        expect("discriminator", law, made, (len(z), 2 * z.shape[1]), "means and log variances")
