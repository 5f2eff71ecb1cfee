"""Games on their way to equilibrium: what a step of each player does to the other's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured

RATE = 0.1  # the learning rate of both players
BETAS = (0.0, 0.3, 0.5, 0.9)
ORDERS = {False: "simultaneous", True: "alternating"}


def bilinear(optimizers: Sequence[torch.optim.Optimizer], *, alternating: bool, steps: int) -> Tensor:
    """Play min over x, max over y of x y: positions ``(steps + 1, 2)`` from where the players' parameters stand.

    Each optimizer holds one parameter, x the first and y the second, the second with ``maximize``. Both gradients are
    taken at the same point, or y's after x has moved.
    """
    (x,), (y,) = (optimizer.param_groups[0]["params"] for optimizer in optimizers)
    path = [torch.stack([x.detach(), y.detach()])]
    for _ in range(steps):
        x.grad, y.grad = torch.autograd.grad(x * y, (x, y))
        optimizers[0].step()
        if alternating:
            (y.grad,) = torch.autograd.grad(x * y, y)
        optimizers[1].step()
        path.append(torch.stack([x.detach(), y.detach()]))
    return torch.stack(path)


@cache
def play(beta: float = 0.0, *, alternating: bool, steps: int, rate: float = RATE, adam: bool = False) -> Tensor:
    """The bilinear game from (1, 0), with SGD of this momentum or Adam of this beta1: positions ``(steps + 1, 2)``."""
    x, y = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (1.0, 0.0))
    players: list[torch.optim.Optimizer] = []
    for player, maximize in ((x, False), (y, True)):
        if adam:
            players.append(torch.optim.Adam([player], lr=rate, betas=(beta, 0.999), maximize=maximize))
        else:
            players.append(torch.optim.SGD([player], lr=rate, momentum=beta, maximize=maximize))
    return bilinear(players, alternating=alternating, steps=steps)


def spectral_radius(beta: float, *, alternating: bool, rate: float = RATE) -> float:
    """Largest modulus among the eigenvalues of one step on (x, y, velocity of x, velocity of y)."""
    x, y, u, v = torch.eye(4, dtype=torch.float64)
    u = beta * u + y
    moved = x - rate * u
    v = beta * v + (moved if alternating else x)
    step = torch.stack([moved, y + rate * v, u, v])
    return float(torch.linalg.eigvals(step).abs().max())


def growth(path: Tensor) -> float:
    """Factor by which the radius of a path grows a step: a straight line through the logarithms of its second half."""
    heights = path.norm(dim=1).log()[len(path) // 2 :]
    times = torch.arange(len(heights), dtype=path.dtype)
    times -= times.mean()
    return float(((times * heights).sum() / times.square().sum()).exp())


def invariant(path: Tensor, rate: float = RATE) -> Tensor:
    """x^2 + y^2 - rate x y, which alternating steps keep."""
    x, y = path.T
    return x.square() + y.square() - rate * x * y


def simultaneous_steps_spiral_out(seed: int = 0) -> Claim:
    """In min max xy the equilibrium repels players who step at the same time."""
    path = play(alternating=False, steps=200)
    factors = path[1:].norm(dim=1) / path[:-1].norm(dim=1)
    exact = math.sqrt(1 + RATE**2)

    def draw(axes: Sequence[Any]) -> None:
        _orbit(axes[0], path, f"simultaneous steps, learning rate {RATE:g}")

    return Claim(
        name="simultaneous-steps-spiral-out",
        statement="In the game min over x, max over y of x y, gradient steps of both players at once move away from "
        "the equilibrium: the radius grows by sqrt(1 + lr^2) at every step.",
        source="Mescheder et al., 2018, Which Training Methods for GANs do actually Converge?, section 2",
        measured=(
            Measured("growth of the radius a step, least", float(factors.min()), exact, 1e-12),
            Measured("growth of the radius a step, most", float(factors.max()), exact, 1e-12),
        ),
        draw=draw,
    )


def alternating_steps_circle(seed: int = 0) -> Claim:
    """Players who answer each other's move go round the equilibrium for ever."""
    path = play(alternating=True, steps=2000)
    kept = invariant(path)
    radius = path.norm(dim=1)

    def draw(axes: Sequence[Any]) -> None:
        _orbit(axes[0], path[:200], f"alternating steps, learning rate {RATE:g}")

    return Claim(
        name="alternating-steps-circle",
        statement="Where y answers the x that has just moved, the same game goes round on an ellipse: "
        "x^2 + y^2 - lr x y is kept exactly, so the radius stays between two bounds and neither falls nor grows.",
        source="Gidel et al., 2019, Negative Momentum for Improved Game Dynamics, on bilinear games",
        measured=(
            Measured("largest change of x^2 + y^2 - lr x y in 2000 steps", float((kept - 1).abs().max()), 0.0, 1e-10),
            Measured("least radius", float(radius.min()), 1 / math.sqrt(1 + RATE / 2), 1e-3),
            Measured("largest radius", float(radius.max()), 1 / math.sqrt(1 - RATE / 2), 1e-3),
        ),
        draw=draw,
    )


def momentum_drives_players_apart(seed: int = 0) -> Claim:
    """Why beta1 is low: the more of its past a player keeps, the faster both leave the equilibrium."""
    measured, growths = [], {}
    for alternating, how in ORDERS.items():
        growths[alternating] = [growth(play(beta, alternating=alternating, steps=500)) for beta in BETAS]
        for beta, value in zip(BETAS, growths[alternating], strict=True):
            radius = spectral_radius(beta, alternating=alternating)
            measured.append(Measured(f"growth a step, {how}, momentum {beta:g}", value, radius, 1e-4))
        rise = min(high - low for low, high in pairwise(growths[alternating]))
        measured.append(Measured(f"least rise of it from momentum to momentum, {how}", rise, 0.005, None, "at_least"))
    adam = {beta: play(beta, alternating=True, steps=1000, rate=0.01, adam=True) for beta in (0.0, 0.5, 0.9)}
    for low, high in pairwise(adam):
        ratio = float(adam[high][-1].norm() / adam[low][-1].norm())
        what = f"Adam's radius after 1000 steps, beta1 {high:g} over {low:g}"
        measured.append(Measured(what, ratio, 1.5, None, "at_least"))

    def draw(axes: Sequence[Any]) -> None:
        _momentum(axes, growths, adam)

    return Claim(
        name="momentum-drives-players-apart",
        statement="Momentum makes the game diverge: what a step does to a displacement has a spectral radius that "
        "rises with beta, above 1 even where players alternate. So it is with Adam: hence beta1 = 0.5 or 0, not 0.9.",
        source="Gidel et al., 2019, on bilinear games; Radford et al., 2016 (DCGAN), section 4, on beta1 = 0.5",
        measured=tuple(measured),
        draw=draw,
        panels=2,
    )


def _orbit(axis: Any, path: Tensor, title: str) -> None:
    axis.plot(*path.T, color="tab:blue", linewidth=1, marker=".", markersize=3)
    axis.plot(*path[0], color="tab:orange", marker="o", linestyle="none", label="start")
    axis.plot(0, 0, color="black", marker="+", markersize=10, linestyle="none", label="equilibrium")
    axis.set_aspect("equal")
    axis.set_xlabel("x, who minimises x y")
    axis.set_ylabel("y, who maximises it")
    axis.set_title(title)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _momentum(axes: Sequence[Any], growths: dict[bool, list[float]], adam: dict[float, Tensor]) -> None:
    radii, runs = axes
    betas = [step / 50 for step in range(48)]
    for (alternating, how), color in zip(ORDERS.items(), ("tab:orange", "tab:blue"), strict=True):
        values = [spectral_radius(beta, alternating=alternating) for beta in betas]
        radii.plot(betas, values, color=color, label=how)
        radii.plot(BETAS, growths[alternating], color=color, marker="o", linestyle="none")
    radii.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    radii.set_xlabel("momentum")
    radii.set_ylabel("growth of the radius a step")
    radii.set_title("spectral radius (lines) and SGD (points)")
    radii.legend()
    for (beta, path), color in zip(adam.items(), ("tab:green", "tab:blue", "tab:orange"), strict=True):
        runs.plot(path.norm(dim=1), color=color, label=f"beta1 = {beta:g}")
    runs.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    runs.set_xlabel("step")
    runs.set_ylabel("distance from the equilibrium")
    runs.set_title("Adam, alternating, learning rate 0.01")
    runs.legend()


CLAIMS: tuple[Check, ...] = (simultaneous_steps_spiral_out, alternating_steps_circle, momentum_drives_players_apart)
