"""The derivatives of ``gan_loss_formulas`` written out: what the op returns where its kernels do not run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.ops.gan_loss_formulas import Form, flipped, wide


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """(1 - t) s(x) - t s(-x), in which nothing cancels."""
    return (1 - label) * torch.sigmoid(logits) - label * torch.sigmoid(-logits)


def least_squares(logits: Tensor, label: float) -> Tensor:
    """x - t."""
    return logits - label


def hinge(logits: Tensor, label: float) -> Tensor:
    """-1 for real and 1 for fake; 0 where the hinge is."""
    side = 1 - 2 * label
    return torch.where(1 + side * logits <= 0, 0.0, torch.full_like(logits, side))


def linear(logits: Tensor, label: float) -> Tensor:
    """-1 for real and 1 for fake."""
    return torch.full_like(logits, 1 - 2 * label)


SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "cross_entropy": cross_entropy,
    "least_squares": least_squares,
    "hinge": hinge,
    "linear": linear,
}


def slopes(
    form: Form,
    real: Tensor | None,
    fake: Tensor | None,
    real_weight: Tensor | None,
    fake_weight: Tensor | None,
    rng: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the loss's derivative by each real and each fake logit, in their shapes."""
    real, fake, real_weight, fake_weight = (wide(t) for t in (real, fake, real_weight, fake_weight))
    if form.relation != "none":
        assert real is not None and fake is not None
        relation = _pairs if form.relation == "pairs" else _average
        return relation(form, real, fake, real_weight, fake_weight)
    found: list[Tensor | None] = []
    flips = flipped(form, real, fake, rng)
    own = zip((real, fake), (real_weight, fake_weight), form.labels, form.labels[::-1], flips, strict=True)
    for logits, weight, label, other, flip in own:
        if logits is None:
            found.append(None)
            continue
        slope = SLOPES[form.term](logits, label)
        if flip is not None:
            slope = torch.where(flip, SLOPES[form.term](logits, other), slope)
        found.append(_weighed(slope, weight) * form.sign / logits.numel())
    return found[0], found[1]


def _pairs(form: Form, real: Tensor, fake: Tensor, weight: Tensor | None, _: Tensor | None) -> tuple[Tensor, Tensor]:
    side = -1.0 if form.raised == "real" else 1.0
    slope = side * torch.sigmoid(side * (real.reshape(-1) - fake.reshape(-1))) / real.numel()
    slope = _weighed(slope, None if weight is None else weight.reshape(-1))
    return slope.view(real.shape), -slope.view(fake.shape)


def _average(
    form: Form, real: Tensor, fake: Tensor, real_weight: Tensor | None, fake_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    side = -1.0 if form.raised == "real" else 1.0
    of_real = _weighed(side * torch.sigmoid(side * (real - fake.mean())), real_weight)
    of_fake = _weighed(-side * torch.sigmoid(-side * (fake - real.mean())), fake_weight)
    return (of_real - of_fake.mean()) / real.numel(), (of_fake - of_real.mean()) / fake.numel()


def _weighed(slope: Tensor, weight: Tensor | None) -> Tensor:
    return slope if weight is None else slope * weight
