"""What k steps of the discriminator buy: a game in which D*(G) is known, so that D's distance from it can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.objectives import discriminator_loss, generator_loss

STEPS = (1, 2, 5, 20)  # discriminator steps for each step of the generator
RATE_D, RATE_G = 0.2, 0.1
ROUNDS = 100


@dataclass(frozen=True)
class Run:
    """One game: the generator's place, and how far D is from D*(G), after each step of the generator."""

    places: Tensor
    stale: Tensor


def normal_sample(n: int = 200) -> Tensor:
    """Quantiles of N(0, 1) at the middles of n equal shares: a sample without chance, scaled to variance 1."""
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = torch.special.ndtri(shares)
    return z / z.std(correction=0)


def optimal(place: Tensor) -> Tensor:
    """Slope and offset of the logit of D* = p / (p + p_g), where p is N(0, 1) and p_g is N(place, 1)."""
    return torch.stack([-place, place.square() / 2])


def play(k: int, *, start: float, rounds: int = ROUNDS) -> Run:
    """k steps of D, then one of G, ``rounds`` times, from D = D*.

    Data are N(0, 1), G(z) = place + z, and D is logistic in x, so that D*(G) is among its values. The loss is
    ``non_saturating``.
    """
    z = normal_sample()
    place = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    d = optimal(place.detach()).requires_grad_()
    places, stale = [], []
    for _ in range(rounds):
        fake = z + place.detach()
        for _ in range(k):
            loss = discriminator_loss("non_saturating", logits(d, z), logits(d, fake))
            (slope,) = torch.autograd.grad(loss, d)
            d = (d - RATE_D * slope).detach().requires_grad_()
        (slope,) = torch.autograd.grad(generator_loss("non_saturating", logits(d, z + place)), place)
        place = (place - RATE_G * slope).detach().requires_grad_()
        places.append(place.detach())
        stale.append(distance(d.detach(), place.detach()))
    return Run(torch.stack(places), torch.stack(stale))


def logits(d: Tensor, x: Tensor) -> Tensor:
    """D's logits of the points x."""
    return d[0] * x + d[1]


def distance(d: Tensor, place: Tensor) -> Tensor:
    """Root mean square of D - D*(G) over real and generated points alike."""
    z = normal_sample()
    x = torch.cat([z, z + place])
    return (logits(d, x).sigmoid() - logits(optimal(place), x).sigmoid()).square().mean().sqrt()


def predicted(k: int, *, start: float, rounds: int = ROUNDS) -> Tensor:
    """The same distances by the game's linear form at its equilibrium.

    There D's loss has the Hessian 1/2, so that k steps leave c = (1 - lr_D / 2)^k of the error e = w - w* of D's slope,
    and G steps by lr_G w / 2, which moves w* as well.
    """
    c, g = (1 - RATE_D / 2) ** k, RATE_G / 2
    step = torch.tensor([[1 - g, g * c], [-g, c * (1 + g)]], dtype=torch.float64)
    state = torch.tensor([start, 0.0], dtype=torch.float64)  # place, e
    errors = []
    for _ in range(rounds):
        state = step @ state
        errors.append(state[1].abs() / 4)  # dD / dlogit is 1/4 where D = 1/2, and x has variance 1
    return torch.stack(errors)


def more_discriminator_steps_make_it_less_stale(seed: int = 0) -> Claim:
    """D lags behind D*(G) by what G moved, and k steps of D decide how much of the lag is left."""
    runs = {k: play(k, start=2.0) for k in STEPS}
    means = {k: float(run.stale.mean()) for k, run in runs.items()}
    measured = [
        Measured(f"mean distance of D from D*(G), k = {k}", means[k], 0.75 * means[before], None, "at_most")
        if before
        else Measured(f"mean distance of D from D*(G), k = {k}", means[k])
        for before, k in zip((None, *STEPS), STEPS, strict=False)
    ]
    for k in STEPS:
        small = play(k, start=0.01)
        ratio = float(small.stale.mean() / predicted(k, start=0.01).mean())
        measured.append(Measured(f"the same near equilibrium, over its linear form, k = {k}", ratio, 1.0, 1e-3))

    def draw(axes: Sequence[Any]) -> None:
        _picture(axes, runs)

    return Claim(
        name="more-discriminator-steps-make-it-less-stale",
        statement="After each generator step D is stale: D*(G) has moved. k steps of D leave (1 - lr / 2)^k of the lag "
        "near the equilibrium, so the mean distance from D* falls with k, down to what G's last step made of it.",
        source="Goodfellow et al., 2014, algorithm 1 and section 3 (D stays near its optimum while G changes slowly)",
        measured=tuple(measured),
        draw=draw,
        panels=2,
    )


def _picture(axes: Sequence[Any], runs: dict[int, Run]) -> None:
    colors = ("tab:orange", "tab:red", "tab:green", "tab:blue")
    for (k, run), color in zip(runs.items(), colors, strict=True):
        label = f"k = {k}"
        axes[0].plot(run.stale, color=color, label=label)
        axes[1].plot(run.places, color=color, label=label)
    axes[0].set_title("how stale D is")
    axes[0].set_ylabel("distance of D from D*(G)")
    axes[1].set_title("where G is (the data's mean is 0)")
    axes[1].set_ylabel("mean of generated samples")
    axes[1].axhline(0, color="0.6", linewidth=0.8, linestyle="--")
    for axis in axes:
        axis.set_xlabel("generator step")
        axis.legend()


CLAIMS: tuple[Check, ...] = (more_discriminator_steps_make_it_less_stale,)
