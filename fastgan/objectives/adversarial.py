"""The losses of the original GAN, on logits. Source: Goodfellow et al., 2014, "Generative Adversarial Nets"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import unknown


@dataclass(frozen=True)
class Objective:
    """A value function seen from both players; each side is to be minimised.

    ``discriminator(real_logits, fake_logits)`` and ``generator(fake_logits)`` take logits of any shape (the two batches
    may differ in size) and return a scalar.
    """

    name: str
    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _cross_entropy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    # -log sigmoid(l) = softplus(-l): finite however sure the discriminator is
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def _saturating(fake_logits: Tensor) -> Tensor:
    return -F.softplus(fake_logits).mean()


def _non_saturating(fake_logits: Tensor) -> Tensor:
    return F.softplus(-fake_logits).mean()


OBJECTIVES = {
    "minimax": Objective("minimax", _cross_entropy, _saturating),
    "non_saturating": Objective("non_saturating", _cross_entropy, _non_saturating),
}


def objective(name: str) -> Objective:
    """Look an objective up by name. Raises UserError with the nearest known name."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def discriminator_loss(name: str, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss, a scalar to be minimised. Differentiable twice in both logits.

    ``minimax`` and ``non_saturating``: E[softplus(-real)] + E[softplus(fake)], the negative of V(D, G) of eq. 1. At the
    optimum, where D = 1/2 everywhere, it is 2 log 2.
    """
    return objective(name).discriminator(real_logits, fake_logits)


def generator_loss(name: str, fake_logits: Tensor) -> Tensor:
    """The generator's loss, a scalar to be minimised. Differentiable twice in the logits.

    ``minimax``: -E[softplus(fake)] = E[log(1 - D(G(z)))], eq. 1; its gradient vanishes where D wins.
    ``non_saturating``: E[softplus(-fake)] = -E[log D(G(z))], section 3; same fixed point, stronger gradient early on.
    """
    return objective(name).generator(fake_logits)
