"""Adversarial examples: an image moved a little, within the box of images, until a classifier errs.

They are searched by the gradient towards one image, with the network fixed; a generator is trained by the gradient
towards its weights, and makes images from nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastgan.errors import require

Logits = Callable[[Tensor], Tensor]

WEIGHTS = (1e-4, 1e2)  # of the distance against the loss, between which the largest that still fools is looked for
ROUNDS = 8  # bisections of the weight
ITERATIONS = 60  # of L-BFGS-B at a weight
SHORTENINGS = 20  # bisections along the line back to the image


def two_classes(score: Logits, boundary: float = 0.0) -> Logits:
    """Read a discriminator's one score as the logits of the classes 0, fake, and 1, real, divided at ``boundary``."""

    def logits(images: Tensor) -> Tensor:
        above = score(images).flatten() - boundary
        return torch.stack([torch.zeros_like(above), above], 1)

    return logits


def random_signs(images: Tensor, eps: float, random: torch.Generator) -> Tensor:
    """Move each value by ``eps`` in a random direction, within [-1, 1]: as long a step as that of `fgsm`, but blind."""
    signs = torch.randint(2, images.shape, generator=random).to(images) * 2 - 1
    return (images + eps * signs).clamp(-1, 1)


def fgsm(logits: Logits, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Fast gradient sign method, Goodfellow, Shlens and Szegedy, 2015, eq. in section 4: x + eps sign(dJ/dx).

    Args:
        logits: Images ``(n, C, H, W)`` to logits ``(n, classes)``, each image by itself.
        images: In [-1, 1]; so are the results.
        labels: ``(n,)`` what they are: J is the cross-entropy of these.
        eps: How far each value moves; two of it are one of the paper's, whose images lie in [0, 1].
    """
    at = images.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(F.cross_entropy(logits(at), labels, reduction="sum"), at)
    return (images + eps * slope.sign()).clamp(-1, 1).detach()


@dataclass(frozen=True)
class Found:
    """What `nearest_fooling` found.

    Attributes:
        images: ``(n, C, H, W)``, the adversarial ones; the originals where none was found.
        fooled: ``(n,)`` bool: where one was.
    """

    images: Tensor
    fooled: Tensor


def nearest_fooling(logits: Logits, images: Tensor, targets: Tensor) -> Found:
    """Box-constrained L-BFGS, Szegedy et al., 2014, section 4.1: near images that a classifier takes for ``targets``.

    Minimises w |r|² + cross-entropy(logits(x + r), target) with x + r in [-1, 1] by L-BFGS-B, from r = 0, and looks by
    bisection for the largest w at which x + r is still taken for the target: the nearer, the larger w is. What is
    found is then drawn back towards x along the line, as far as it fools.

    Args:
        logits: Images ``(n, C, H, W)`` to logits ``(n, classes)``, each image by itself.
        images: In [-1, 1].
        targets: ``(n,)`` what they shall be taken for; images that are taken for it already are their own answer.

    Raises:
        UserError: scipy is missing.
    """
    low, high = (torch.full((len(images),), math.log(weight)) for weight in WEIGHTS)
    best, fooled = images.clone(), _taken(logits, images, targets)
    shortest = torch.where(fooled, 0.0, math.inf).to(images)
    weight = low.clone()
    for _ in range(ROUNDS + 1):
        moved = _minimised(logits, images, targets, weight.exp())
        taken = _taken(logits, moved, targets)
        length = (moved - images).flatten(1).norm(dim=1)
        nearer = taken & (length < shortest)
        best[nearer], shortest[nearer] = moved[nearer], length[nearer]
        fooled |= taken
        low, high = torch.where(taken, weight, low), torch.where(taken, high, weight)
        weight = (low + high) / 2
    return Found(_drawn_back(logits, images, best, targets, fooled), fooled)


def _minimised(logits: Logits, images: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """The minimiser for the given weight ``(n,)`` of each image. Their problems are one, whose parts do not meet."""
    optimize = require("scipy.optimize", extra="eval", why="box-constrained L-BFGS")
    scale = weight.view(-1, 1)

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.from_numpy(flat).to(images).view_as(images).requires_grad_(True)
        with torch.enable_grad():
            distance = (scale * (at - images).flatten(1).square()).sum()
            total = distance + F.cross_entropy(logits(at), targets, reduction="sum")
            (slope,) = torch.autograd.grad(total, at)
        return total.item(), slope.flatten().double().numpy()

    start = images.flatten().double().numpy()
    bounds = optimize.Bounds(-1.0, 1.0)
    found = optimize.minimize(
        value, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS, "maxcor": 20}
    )
    return torch.from_numpy(found.x).to(images).view_as(images)


@torch.no_grad()
def _taken(logits: Logits, images: Tensor, targets: Tensor) -> Tensor:
    return logits(images).argmax(1) == targets


def _drawn_back(logits: Logits, images: Tensor, found: Tensor, targets: Tensor, fooled: Tensor) -> Tensor:
    """The point nearest to the image, of those on the line to what was found, up to which each still fools."""
    shape = (-1, *[1] * (images.ndim - 1))
    low, high = torch.zeros(len(images)), torch.ones(len(images))
    for _ in range(SHORTENINGS):
        middle = (low + high) / 2
        taken = _taken(logits, torch.lerp(images, found, middle.to(images).view(shape)), targets)
        low, high = torch.where(taken, low, middle), torch.where(taken, middle, high)
    back = torch.lerp(images, found, high.to(images).view(shape)).clamp(-1, 1)
    return torch.where(fooled.view(shape), back, images)
