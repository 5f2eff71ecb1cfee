"""The losses of GANs in plain PyTorch, each as its paper has it: the definition of right for ``gan_loss``.

A term is a function of logits and of their label: 1 for what is to be judged real, 0 for what is to be judged fake.
Everything is formed in fp32, fp64 logits in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import dropout, peers


class Recipe(NamedTuple):
    """How an objective is made: of one term for each logit, or of a relation between the batches."""

    term: str = "cross_entropy"
    relation: str = "none"  # none, pairs or average
    generator_term: str | None = None  # where it is another one
    generator_label: float = 1.0  # that the generator wants its samples to have
    generator_sign: float = 1.0
    labels: str = "none"  # what may be done to the discriminator's labels: none, flip, or both (flip and smooth)


RECIPES = {
    "minimax": Recipe(generator_label=0.0, generator_sign=-1.0, labels="both"),
    "non_saturating": Recipe(labels="both"),
    "least_squares": Recipe("least_squares", labels="both"),
    "hinge": Recipe("hinge", generator_term="linear", labels="flip"),
    "wasserstein": Recipe("linear"),
    "relativistic": Recipe(relation="pairs"),
    "relativistic_average": Recipe(relation="average"),
}


class Form(NamedTuple):
    """One side of an objective with its options."""

    term: str
    relation: str = "none"
    raised: str = "real"  # of a relation: the batch that is to be judged more real than the other
    labels: tuple[float, float] = (1.0, 0.0)  # of real and of fake logits
    sign: float = 1.0
    flip: float = 0.0  # probability that a label is the other one


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), which from 40 on is x itself in float64 too: PyTorch's own threshold, 20, would show there."""
    return F.softplus(x, 1.0, 40.0)


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """-t log D - (1 - t) log(1 - D) with D = sigmoid(logit).

    Goodfellow et al. 2014, eq. 1: t = 1 for real and 0 for fake. Smoothed labels: Salimans et al. 2016, section 3.4.
    """
    if label == 1:
        return softplus(-logits)
    if label == 0:
        return softplus(logits)
    return label * softplus(-logits) + (1 - label) * softplus(logits)


def least_squares(logits: Tensor, label: float) -> Tensor:
    """(D - t)^2 / 2. LSGAN, Mao et al. 2017, eq. 2 with the coding of eq. 9: b = c = 1 and a = 0."""
    return 0.5 * (logits - label).square()


def hinge(logits: Tensor, label: float) -> Tensor:
    """max(0, 1 - D) for real, max(0, 1 + D) for fake. Lim & Ye 2017; Miyato et al. 2018 (SNGAN), eq. 16."""
    return F.relu(1 + (1 - 2 * label) * logits)


def linear(logits: Tensor, label: float) -> Tensor:
    """-f for real, f for fake. WGAN, Arjovsky et al. 2017, eq. 2; the generator's side of SNGAN's eq. 17."""
    return (1 - 2 * label) * logits


def relativistic(raised: Tensor, other: Tensor) -> Tensor:
    """softplus(-(a_i - b_i)) for pairs of logits. RSGAN, Jolicoeur-Martineau 2018, section 4.1."""
    return softplus(other.reshape(-1) - raised.reshape(-1))


def relativistic_average(raised: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(-(a - mean b)) and softplus(b - mean a). RaSGAN, Jolicoeur-Martineau 2018, section 4.3."""
    return softplus(peers.mean(other.mean()) - raised), softplus(other - peers.mean(raised.mean()))


TERMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "cross_entropy": cross_entropy,
    "least_squares": least_squares,
    "hinge": hinge,
    "linear": linear,
}


def loss(
    form: Form,
    real: Tensor | None,
    fake: Tensor | None,
    real_weight: Tensor | None,
    fake_weight: Tensor | None,
    rng: Tensor | None,
) -> Tensor:
    """Return the loss, (). A batch that is not given adds nothing."""
    real, fake, real_weight, fake_weight = (wide(t) for t in (real, fake, real_weight, fake_weight))
    if form.relation != "none":
        assert real is not None and fake is not None
        first, second = (real, fake) if form.raised == "real" else (fake, real)
        if form.relation == "pairs":
            return mean(relativistic(first, second), None if real_weight is None else real_weight.reshape(-1))
        weights = (real_weight, fake_weight) if form.raised == "real" else (fake_weight, real_weight)
        one, two = relativistic_average(first, second)
        return mean(one, weights[0]) + mean(two, weights[1])
    flips = flipped(form, real, fake, rng)
    own = zip((real, fake), (real_weight, fake_weight), form.labels, form.labels[::-1], flips, strict=True)
    parts = [
        mean(labelled(form, logits, label, other, flip), weight)
        for logits, weight, label, other, flip in own
        if logits is not None
    ]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return total if form.sign == 1 else form.sign * total


def labelled(form: Form, logits: Tensor, label: float, other: float, flip: Tensor | None) -> Tensor:
    """Return each logit's term by its label, or by the other one where it is flipped."""
    term = TERMS[form.term]
    return term(logits, label) if flip is None else torch.where(flip, term(logits, other), term(logits, label))


def mean(terms: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of the weighted terms, by their count, as torch.nn's losses do."""
    return terms.mean() if weight is None else (terms * weight).mean()


def flipped(
    form: Form, real: Tensor | None, fake: Tensor | None, rng: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return which labels are flipped, by the bits of dropout: the fake ones are numbered behind the real ones."""
    if rng is None:
        return None, None
    first = 0 if real is None else real.numel()
    drawn = ~dropout.keep_mask(rng, first + (0 if fake is None else fake.numel()), form.flip)
    return (
        None if real is None else drawn[:first].view(real.shape),
        None if fake is None else drawn[first:].view(fake.shape),
    )


def watch(form: Form, real: Tensor | None, fake: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the mean scores of real and fake logits and the shares that are judged rightly, as ``gan_loss`` says."""
    real, fake = wide(real), wide(fake)
    if form.relation != "none":
        assert real is not None and fake is not None
        real, fake = (
            (real.reshape(-1) - fake.reshape(-1), fake.reshape(-1) - real.reshape(-1))
            if form.relation == "pairs"
            else (real - peers.mean(fake.mean()), fake - peers.mean(real.mean()))
        )
    score = torch.sigmoid if form.term == "cross_entropy" else torch.clone
    bound = 0.5 if form.term == "least_squares" else 0.0
    right = (
        None if real is None else (real > bound).float().mean(),
        None if fake is None else ((fake < 0) if form.relation == "pairs" else (fake <= bound)).float().mean(),
    )
    return (*(None if logits is None else score(logits).mean().float() for logits in (real, fake)), *right)


def wide(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor in fp32, or as it is in fp64."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.float()
