"""What the two players of a GAN minimise, as functions of logits. Real is label 1.

With x the logits of real samples, y those of generated ones, D = sigmoid(logit) and E the mean over a batch:

``minimax``               max_D min_G of V(D, G) = E log D(x) + E log(1 - D(y)).
                          Goodfellow et al. 2014, "Generative Adversarial Nets", eq. 1.
``non_saturating``        the same discriminator; G maximises E log D(y). Goodfellow et al. 2014, section 3.
``least_squares``         E (x - 1)^2 / 2 + E y^2 / 2; G: E (y - 1)^2 / 2. Mao et al. 2017, "Least Squares Generative
                          Adversarial Networks", eq. 2 with the coding of eq. 9.
``hinge``                 E max(0, 1 - x) + E max(0, 1 + y); G: -E y. Lim & Ye 2017, "Geometric GAN"; Miyato et al.
                          2018, "Spectral Normalization for Generative Adversarial Networks", eq. 16 and 17.
``wasserstein``           -E x + E y for a critic that must be kept 1-Lipschitz; G: -E y. Arjovsky et al. 2017,
                          "Wasserstein GAN", eq. 2 and algorithm 1.
``relativistic``          E -log sigmoid(x_i - y_i) over pairs; G: the same with x and y exchanged. Jolicoeur-Martineau
                          2018, "The relativistic discriminator", section 4.1.
``relativistic_average``  E -log sigmoid(x - E y) + E -log(1 - sigmoid(y - E x)); G: the same with x and y exchanged.
                          Jolicoeur-Martineau 2018, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fastgan.errors import unknown
from fastgan.ops.gan_loss import gan_loss
from fastgan.ops.gan_loss_formulas import RECIPES


@dataclass(frozen=True)
class Objective:
    """A value function seen from both players; each side is to be minimised.

    ``discriminator(real_logits, fake_logits)`` and, unless it ``needs_real`` logits as well, ``generator(fake_logits)``
    take logits of any shape (the two batches may differ in size) and return a scalar. Those of ``OBJECTIVES`` take the
    options of :func:`discriminator_loss` and :func:`generator_loss` too.
    """

    name: str
    discriminator: Callable[..., Tensor]
    generator: Callable[..., Tensor]
    needs_real: bool = False  # it is generator(fake_logits, real_logits)


def discriminator_loss(name: str, real_logits: Tensor, fake_logits: Tensor, **options: Any) -> Tensor:
    """The discriminator's loss, a scalar to be minimised. Differentiable as often as asked in both logits.

    ``minimax`` and ``non_saturating``: E softplus(-x) + E softplus(y), the negative of V(D, G). At the optimum, where
    D = 1/2 everywhere, it is 2 log 2.

    Args:
        name: of the objective.
        real_logits, fake_logits: any shape, of different sizes too (of one size in ``relativistic``).
        options: ``label_smoothing`` (of the real label, or a pair), ``label_flip`` and its ``rng``, ``real_weight``,
            ``fake_weight``, ``monitors``: see ``fastgan.ops.gan_loss``.

    Raises:
        UserError: for an unknown name, and an option that the objective has no use for.
    """
    return gan_loss(name, real_logits, fake_logits, **options)


def generator_loss(name: str, fake_logits: Tensor, real_logits: Tensor | None = None, **options: Any) -> Tensor:
    """The generator's loss, a scalar to be minimised. Differentiable as often as asked in the logits.

    ``minimax``: -E softplus(y) = E log(1 - D(y)); its gradient vanishes where D wins. ``non_saturating``:
    E softplus(-y) = -E log D(y); same fixed point, stronger gradient early on.

    Args:
        name: of the objective.
        fake_logits: any shape.
        real_logits: needed by the relativistic objectives; the others do not look at them.
        options: ``real_weight``, ``fake_weight``, ``monitors``: see ``fastgan.ops.gan_loss``.

    Raises:
        UserError: for an unknown name, missing real logits, and an option that this side has no use for.
    """
    return gan_loss(name, real_logits, fake_logits, side="generator", **options)


OBJECTIVES = {
    name: Objective(name, partial(discriminator_loss, name), partial(generator_loss, name), recipe.relation != "none")
    for name, recipe in RECIPES.items()
}


def objective(name: str) -> Objective:
    """Look an objective up by name. Raises UserError with the nearest known name."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
