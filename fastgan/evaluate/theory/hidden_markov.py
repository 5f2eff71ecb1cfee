"""What a model of P(X, Y) may know beyond one sample: a hidden Markov model on the toy set, told in sequence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.discriminative import Toy, logistic_regression, naive_bayes, toy

STAY = 0.9  # the chance that a label is followed by the same one
LEARNT, TESTED, LENGTH = 100, 2000, 40  # sequences to learn from, sequences to be judged on, labels in each


@dataclass(frozen=True)
class HiddenMarkov:
    """A chain of hidden labels, each of which emits one sample.

    Attributes:
        initial: log P(y_1), ``(states,)``.
        transition: log P(y_t+1 | y_t), ``(states, states)``, rows by y_t.

    Emissions, ``(..., length, states)``, are log p(x_t | y_t). Source: Rabiner, 1989, section III.
    """

    initial: Tensor
    transition: Tensor

    def forward(self, emission: Tensor) -> Tensor:
        """log p(x_1 ... x_t, y_t), of the emissions' shape (eq. 19-20)."""
        steps = [self.initial + emission[..., 0, :]]
        for own in emission.unbind(-2)[1:]:
            steps.append(torch.logsumexp(steps[-1][..., None] + self.transition, dim=-2) + own)
        return torch.stack(steps, dim=-2)

    def backward(self, emission: Tensor) -> Tensor:
        """log p(x_t+1 ... x_n | y_t), of the emissions' shape (eq. 24-25)."""
        steps = [torch.zeros_like(emission[..., 0, :])]
        for own in reversed(emission.unbind(-2)[1:]):
            steps.append(torch.logsumexp(self.transition + (own + steps[-1])[..., None, :], dim=-1))
        return torch.stack(steps[::-1], dim=-2)

    def evidence(self, emission: Tensor) -> Tensor:
        """log p(x_1 ... x_n), ``(...)`` (eq. 21)."""
        return torch.logsumexp(self.forward(emission)[..., -1, :], dim=-1)

    def posterior(self, emission: Tensor) -> Tensor:
        """P(y_t | x_1 ... x_n), of the emissions' shape (eq. 27)."""
        return torch.softmax(self.forward(emission) + self.backward(emission), dim=-1)


def enumerated(model: HiddenMarkov, emission: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) and the posterior of one sequence ``(length, states)``, by going through every path of labels."""
    length, states = emission.shape
    paths = torch.tensor(list(itertools.product(range(states), repeat=length)))
    weight = model.initial[paths[:, 0]] + emission[torch.arange(length), paths].sum(1)
    weight = weight + model.transition[paths[:, :-1], paths[:, 1:]].sum(1)
    evidence = torch.logsumexp(weight, dim=0)
    shares = torch.nn.functional.one_hot(paths, states).double()
    return evidence, ((weight - evidence).exp()[:, None, None] * shares).sum(0)


def labels(sequences: int, generator: torch.Generator) -> Tensor:
    """Chains of labels 0 and 1, ``(sequences, LENGTH)``, each label equally likely on the whole."""
    first = torch.randint(2, (sequences, 1), generator=generator)
    turns = torch.rand(sequences, LENGTH - 1, generator=generator, dtype=torch.float64) > STAY
    return (torch.cat([first, turns.long()], dim=1).cumsum(1) % 2).double()


def counted(y: Tensor) -> HiddenMarkov:
    """The chain that labels ``(sequences, length)`` make likeliest, with one more of every kind."""
    kinds = 2 * y[:, :-1].long() + y[:, 1:].long()
    pairs = (torch.bincount(kinds.flatten(), minlength=4) + 1).double().view(2, 2)
    return HiddenMarkov(torch.full((2,), -math.log(2), dtype=torch.float64), (pairs / pairs.sum(1, keepdim=True)).log())


def naive_emission(learnt: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """log p(x_t | y_t) by naive Bayes learnt from samples ``(n, features)`` and labels: ``(..., 2)``."""
    means = torch.stack([learnt[y == label].mean(0) for label in (0, 1)])
    variance = (learnt - means[y.long()]).square().mean(0)
    spread = ((x[..., None, :] - means).square() / variance).sum(-1)
    return -(spread + (2 * math.pi * variance).log().sum()) / 2


@dataclass(frozen=True)
class Judged:
    """Error of each model on test sequences, log p(x) a sample of the generative ones, and one sequence to look at."""

    errors: dict[str, float]
    evidence: dict[str, float]
    shown: dict[str, Tensor]


def judge(law: Toy, seed: int) -> Judged:
    """Learn all three from the same labelled sequences, and judge them on new ones."""
    generator = torch.Generator().manual_seed(seed)
    known, y = labels(LEARNT, generator), labels(TESTED, generator)
    learnt, x = (law.draw(own, generator) for own in (known, y))
    flat = learnt.flatten(0, 1), known.flatten()
    chances = {}
    for name, fit in (("logistic regression", logistic_regression), ("naive Bayes", naive_bayes)):
        weight, bias = fit(*flat)
        chances[name] = torch.sigmoid(x @ weight + bias)
    emission = naive_emission(*flat, x)
    model = counted(known)
    chances["hidden Markov"] = model.posterior(emission)[..., 1]
    lively = int(((y[:, 1:] != y[:, :-1]).sum(1) == 4).int().argmax())  # a sequence with four turns: the first
    alone = torch.logsumexp(emission - math.log(2), dim=-1).mean()
    return Judged(
        errors={name: float(((chance > 0.5) != y.bool()).double().mean()) for name, chance in chances.items()},
        evidence={"naive Bayes": float(alone), "hidden Markov": float(model.evidence(emission).mean()) / LENGTH},
        shown={"label": y[lively], **{name: chance[lively] for name, chance in chances.items()}},
    )


def a_hidden_chain_joins_what_samples_say(seed: int = 0) -> Claim:
    """The forward and backward recursions against every path, and their posterior against one sample at a time."""
    generator = torch.Generator().manual_seed(seed)
    initial, transition, emission = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3,), (3, 3), (7, 3))
    )
    model = HiddenMarkov(initial.log_softmax(0), transition.log_softmax(1))
    evidence, posterior = enumerated(model, emission)
    law = toy()
    judged = judge(law, seed)
    errors = judged.errors
    gain = judged.evidence["hidden Markov"] - judged.evidence["naive Bayes"]

    def draw(axes: Sequence[Any]) -> None:
        _sequence(axes[0], judged.shown)
        names = list(errors)
        axes[1].bar(names, list(errors.values()), width=0.5, color=("tab:blue", "tab:orange", "tab:green"))
        axes[1].axhline(law.least_error(), color="k", linewidth=1, linestyle="--", label="least from one sample alone")
        axes[1].set(title=f"error on {TESTED} sequences", ylabel="error", ylim=(0, 0.21))
        axes[1].legend(loc="upper right")

    return Claim(
        name="a-hidden-chain-joins-what-samples-say",
        statement="A hidden Markov model is a P(X, Y) of whole sequences: its recursions give what the sum over all "
        "paths gives, and its posterior errs less than any P(Y|X) of a single sample can.",
        source="Rabiner, 1989, A Tutorial on Hidden Markov Models, section III, eq. 19-27",
        measured=(
            Measured(
                "|log p(x) - sum over all 3^7 paths|", float((model.evidence(emission) - evidence).abs()), 0, 1e-12
            ),
            Measured("the same for P(y_t | x)", float((model.posterior(emission) - posterior).abs().max()), 0, 1e-12),
            Measured("error, naive Bayes: its limit", errors["naive Bayes"], law.naive_limit(), 0.02),
            Measured(
                "error, logistic regression: the least of one sample",
                errors["logistic regression"],
                law.least_error(),
                0.02,
            ),
            Measured(
                "error, hidden Markov over that least",
                errors["hidden Markov"] / law.least_error(),
                0.85,
                None,
                "at_most",
            ),
            Measured("log p(x) a sample, hidden Markov less naive Bayes", gain, 0.05, None, "at_least"),
        ),
        draw=draw,
        panels=2,
    )


def _sequence(axis: Any, shown: dict[str, Tensor]) -> None:
    axis.step(range(LENGTH), shown["label"], where="mid", color="0.8", linewidth=6, label="label")
    for name, color, mark in (("naive Bayes", "tab:orange", "."), ("hidden Markov", "tab:green", "-")):
        axis.plot(shown[name], mark, color=color, label=f"P(1 | x), {name}")
    axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    axis.set(title="one sequence", xlabel="place in the sequence", ylabel="probability of label 1", ylim=(-0.05, 1.25))
    axis.legend(loc="upper center", ncols=3, fontsize=8)


CLAIMS: tuple[Check, ...] = (a_hidden_chain_joins_what_samples_say,)
