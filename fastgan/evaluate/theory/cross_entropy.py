"""Binary cross-entropy as a cost: what it asks for a prediction that agrees, and for one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.nn import BCEWithLogitsLoss
from fastgan.objectives import discriminator_loss

Cost = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> a scalar, the mean over the batch
OURS = BCEWithLogitsLoss()
SURE = 1e4  # a logit


def cost_of(logit: float, label: float, cost: Cost = OURS) -> float:
    """The cost of a single prediction, given as a logit."""
    return float(cost(torch.tensor([logit], dtype=torch.float64), torch.tensor([label], dtype=torch.float64)))


def entropy(label: float) -> float:
    """-y log y - (1 - y) log(1 - y) in nats."""
    return -sum(share * math.log(share) for share in (label, 1 - label) if share)


def cross_entropy_counts_what_is_unlike(seed: int = 0, cost: Cost = OURS) -> Claim:
    """Nothing for a sure and right answer, without bound for a sure and wrong one, and a batch costs its mean."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(64, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (64,), generator=generator).double()
    alone = [cost_of(logit, label, cost) for logit, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    mean = sum(alone) / len(alone)
    real, fake = logits[labels == 1], logits[labels == 0]
    halves = float(cost(real, torch.ones_like(real)) + cost(fake, torch.zeros_like(fake)))
    loss = float(discriminator_loss("non_saturating", real, fake))
    return Claim(
        name="cross-entropy-counts-what-is-unlike",
        statement="Binary cross-entropy is 0 where prediction and label are alike, grows without bound (as the logit "
        "does) where they are opposite, and a batch costs its mean. A smoothed label leaves its entropy.",
        source="Goodfellow et al., 2014, eq. 1, as -V; Salimans et al., 2016, section 3.4 (label smoothing)",
        measured=(
            Measured(f"cost of logit {SURE:g} where the label is 1", cost_of(SURE, 1, cost), 0.0, 1e-12),
            Measured(f"cost of logit {-SURE:g} where the label is 0", cost_of(-SURE, 0, cost), 0.0, 1e-12),
            Measured(f"cost of logit {SURE:g} where the label is 0", cost_of(SURE, 0, cost), SURE, 1e-8),
            Measured(f"cost of logit {-SURE:g} where the label is 1", cost_of(-SURE, 1, cost), SURE, 1e-8),
            Measured("cost of not knowing (D = 1/2)", cost_of(0, 1, cost), math.log(2), 1e-12),
            Measured("cost of a batch less the mean of its samples'", float(cost(logits, labels)) - mean, 0.0, 1e-12),
            Measured("the discriminator's loss less the cost of both its batches", loss - halves, 0.0, 1e-12),
            Measured("steepest slope in a logit", steepest(cost), 1.0, 1e-6),
            *(
                Measured(f"least cost where the label is smoothed to {y:g}", least(y, cost), entropy(y), 1e-5)
                for y in (0.5, 0.9)
            ),
        ),
        draw=_picture,
        panels=2,
    )


def least(label: float, cost: Cost) -> float:
    """The least cost that a prediction can have of this label, over logits in [-6, 6]."""
    return min(cost_of(logit / 100, label, cost) for logit in range(-600, 601))


def steepest(cost: Cost) -> float:
    """Largest slope of the cost in a logit, over logits in [-30, 30] and both labels."""
    slopes = []
    for label in (0.0, 1.0):
        logits = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(cost(logits, torch.full_like(logits, label)), logits)
        slopes.append(float(slope.abs().max()) * len(logits))
    return max(slopes)


def _picture(axes: Sequence[Any]) -> None:
    prediction, logit = axes
    shares = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    logits = torch.linspace(-8, 8, 321, dtype=torch.float64)
    for label, color in ((1.0, "tab:blue"), (0.0, "tab:orange"), (0.9, "tab:green")):
        text = f"label {label:g}"
        costs = F.binary_cross_entropy(shares, torch.full_like(shares, label), reduction="none")
        prediction.plot(shares, costs, color=color, label=text)
        costs = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
        logit.plot(logits, costs, color=color, label=text)
    prediction.set_xlabel("prediction D(x)")
    logit.set_xlabel("logit of the prediction")
    for axis in axes:
        axis.axhline(math.log(2), color="0.6", linewidth=0.8, linestyle="--")
        axis.set_ylabel("cost")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper center")
    prediction.set_title("cost of a prediction (dashed: log 2, at D = 1/2)")
    logit.set_title("the same, by its logit")


CLAIMS: tuple[Check, ...] = (cross_entropy_counts_what_is_unlike,)
