"""P(Y|X) against P(X, Y): logistic regression and naive Bayes on one toy set, whose errors are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured

COUNTS = (20, 50, 100, 200, 500, 2000)  # labelled samples
FEATURES, TIED, CORRELATION, SHIFT = 16, 8, 0.3, 0.35
RIDGE = 1e-2  # as good as none, yet weights stay finite where a line parts all samples


@dataclass(frozen=True)
class Toy:
    """Two equally likely classes, X|Y = N(shift, covariance) or N(-shift, covariance)."""

    shift: Tensor
    covariance: Tensor

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """A sample x for each label 0 or 1: ``(..., features)``."""
        noise = torch.randn(*labels.shape, len(self.shift), generator=generator, dtype=torch.float64)
        return (2 * labels - 1)[..., None] * self.shift + noise @ torch.linalg.cholesky(self.covariance).T

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Exact share of samples that the sign of ``weight`` x + ``bias`` puts into the wrong class."""
        reach = ((weight @ self.covariance) * weight).sum(-1).sqrt()
        centre = weight @ self.shift
        wrong = torch.special.ndtr((-centre - bias) / reach) + torch.special.ndtr((bias - centre) / reach)
        return wrong / 2

    def least_error(self) -> float:
        """The error of the true P(Y|X), which is linear in x."""
        return float(self.error(torch.linalg.solve(self.covariance, self.shift), torch.zeros(())))

    def naive_limit(self) -> float:
        """The error of naive Bayes that has seen everything."""
        return float(self.error(self.shift / self.covariance.diagonal(), torch.zeros(())))


def toy(correlation: float = CORRELATION) -> Toy:
    """Features of variance 1, the first ``TIED`` of them correlated: they say in part the same."""
    covariance = torch.eye(FEATURES, dtype=torch.float64)
    covariance[:TIED, :TIED] += correlation * (1 - torch.eye(TIED, dtype=torch.float64))
    return Toy(torch.full((FEATURES,), SHIFT, dtype=torch.float64), covariance)


def naive_bayes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of log P(1|x) / P(0|x) under P(X|Y) = product of normals: x ``(..., n, features)``, y ``(n,)``.

    Means are the classes', variances are common to both; classes are equally likely.
    """
    low, high = (x[..., y == label, :] for label in (0, 1))
    means = [own.mean(-2) for own in (low, high)]
    within = sum((own - mean[..., None, :]).square().sum(-2) for own, mean in zip((low, high), means, strict=True))
    variance = within / (len(y) - 2)
    weight = (means[1] - means[0]) / variance
    return weight, -(weight * (means[0] + means[1])).sum(-1) / 2


def logistic_regression(x: Tensor, y: Tensor, *, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Weight and bias that make the labels likeliest given x, by Newton's steps. Shapes as for naive_bayes."""
    inputs = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    weight = torch.zeros_like(inputs[..., 0, :])
    ridge = RIDGE * torch.eye(inputs.shape[-1], dtype=x.dtype)
    for _ in range(steps):
        p = torch.sigmoid((inputs @ weight[..., None]).squeeze(-1))
        slope = ((p - y)[..., None] * inputs).sum(-2) + RIDGE * weight
        curvature = inputs.mT @ (inputs * (p * (1 - p))[..., None]) + ridge
        weight = weight - torch.linalg.solve(curvature, slope)
    return weight[..., :-1], weight[..., -1]


@dataclass(frozen=True)
class Curves:
    """Mean exact error of both models at each of ``COUNTS``."""

    generative: list[float]
    discriminative: list[float]

    def lead(self, place: int) -> float:
        """Error of naive Bayes less logistic regression's: below 0 where the generative model leads."""
        return self.generative[place] - self.discriminative[place]


def learning_curves(law: Toy, seed: int) -> Curves:
    """Fit both models to the same sets, many small ones and fewer large ones."""
    generator = torch.Generator().manual_seed(seed)
    curves = Curves([], [])
    for count in COUNTS:
        sets = max(40, 8000 // count)
        y = torch.arange(count, dtype=torch.float64) % 2
        x = law.draw(y.expand(sets, -1), generator)
        curves.generative.append(float(law.error(*naive_bayes(x, y)).mean()))
        curves.discriminative.append(float(law.error(*logistic_regression(x, y)).mean()))
    return curves


def generative_is_sooner_discriminative_is_better(seed: int = 0) -> Claim:
    """Learning curves of naive Bayes and logistic regression, where features are correlated and where they are not."""
    law, independent = toy(), toy(0.0)
    tied, free = (learning_curves(each, seed) for each in (law, independent))

    def draw(axes: Sequence[Any]) -> None:
        _curves(axes[0], tied, law, "correlated features: the assumption is wrong")
        _curves(axes[1], free, independent, "independent features: it is right")

    return Claim(
        name="generative-is-sooner-discriminative-is-better",
        statement="Naive Bayes, a model of P(X, Y), nears its limit with few samples; logistic regression, of P(Y|X), "
        "needs more, but its limit is the best there is, also where naive Bayes' assumption is wrong.",
        source="Ng and Jordan, 2002, On Discriminative vs. Generative Classifiers, propositions 1-4",
        measured=(
            Measured(
                "error of naive Bayes less logistic regression's, 20 samples", tied.lead(0), -0.02, None, "at_most"
            ),
            Measured("the same, 2000 samples", tied.lead(-1), 0.02, None, "at_least"),
            Measured("error of naive Bayes, 2000 samples: its limit", tied.generative[-1], law.naive_limit(), 0.005),
            Measured("error of logistic regression: the least", tied.discriminative[-1], law.least_error(), 0.005),
            Measured("independent features, the difference, 20 samples", free.lead(0), -0.02, None, "at_most"),
            Measured("independent features, the difference, 2000 samples", free.lead(-1), 0.0, 0.003),
        ),
        draw=draw,
        panels=2,
    )


def _curves(axis: Any, curves: Curves, law: Toy, title: str) -> None:
    axis.semilogx(COUNTS, curves.generative, "o-", color="tab:orange", label="naive Bayes, P(X, Y)")
    axis.semilogx(COUNTS, curves.discriminative, "o-", color="tab:blue", label="logistic regression, P(Y|X)")
    axis.axhline(law.naive_limit(), color="tab:orange", linewidth=0.8, linestyle="--")
    axis.axhline(law.least_error(), color="tab:blue", linewidth=0.8, linestyle="--")
    axis.set(title=title, xlabel="labelled samples (dashed: the limits)", ylabel="error", ylim=(0.05, 0.26))
    axis.legend()


CLAIMS: tuple[Check, ...] = (generative_is_sooner_discriminative_is_better,)
