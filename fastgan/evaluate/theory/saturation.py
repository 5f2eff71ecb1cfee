"""The two losses of the original GAN's generator: how strong their gradients are, and where they lead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import LINE, integral, jensen_shannon, kullback_leibler, normal
from fastgan.nn import Chain, LinearAct
from fastgan.objectives import discriminator_loss, generator_loss

LOSSES = ("minimax", "non_saturating")
NAMES = {"minimax": "saturating", "non_saturating": "non-saturating"}
COLORS = {"minimax": "tab:orange", "non_saturating": "tab:green"}
LATENTS = normal().quantiles(1000)
DATA = (1.0, 0.7)  # mean and standard deviation
SURE = -15.0  # the logit of a discriminator that has won


class Lesson(NamedTuple):
    """A discriminator's training against a generator that stands still."""

    steps: list[int]
    score: list[float]  # mean D(G(z))
    strength: dict[str, list[float]]  # norm of the generator's gradient by each loss


def saturating_gradient_vanishes(seed: int = 0) -> Claim:
    """Train a discriminator ever longer against a generator far from the data; take both losses' gradients."""
    lesson = training(seed)
    sure = torch.tensor(SURE, dtype=torch.float64)
    slopes = {name: float(logit_slope(name, sure).abs()) for name in LOSSES}
    saturating, other = (lesson.strength[name][-1] / max(lesson.strength[name]) for name in LOSSES)
    return Claim(
        "saturating-gradient-vanishes",
        "As the discriminator wins, the gradient of log(1 - D(G(z))) vanishes with D(G(z)); that of -log D(G(z)) does "
        "not.",
        "Goodfellow et al., 2014, section 3; Arjovsky and Bottou, 2017, theorem 2.4",
        (
            Measured(f"slope in a logit of {SURE:g}, saturating", slopes["minimax"], float(sure.sigmoid()), 1e-15),
            Measured(
                f"slope in a logit of {SURE:g}, non-saturating",
                slopes["non_saturating"],
                float((-sure).sigmoid()),
                1e-15,
            ),
            Measured("mean D(G(z)) at the end", lesson.score[-1], 1e-3, 0, "at_most"),
            Measured("gradient at the end over its largest, saturating", saturating, 0.1, 0, "at_most"),
            Measured("gradient at the end over its largest, non-saturating", other, 0.5, 0, "at_least"),
        ),
        partial(_draw_vanishing, lesson),
        panels=2,
    )


def both_losses_share_the_fixed_point(seed: int = 0) -> Claim:
    """Descend each loss against the best discriminator of every moment, in mean and deviation of a normal generator."""
    paths = {name: descent(name, (-1.0, 1.5)) for name in LOSSES}
    from_afar = {name: descent(name, (9.0, 0.7), steps=100) for name in LOSSES}
    ends = {name: math.dist(path[-1], DATA) for name, path in paths.items()}
    still = {name: float(pull(name, *DATA).norm()) for name in LOSSES}
    moved = {name: math.dist(path[0], path[-1]) for name, path in from_afar.items()}
    return Claim(
        "both-losses-share-the-fixed-point",
        "Both losses rest where the generator is the data, and lead there; from afar only the non-saturating one sets "
        "out.",
        "Goodfellow et al., 2014, section 3 (same fixed point, stronger gradients early)",
        (
            *(Measured(f"gradient where G is the data, {NAMES[name]}", still[name], 0, 1e-12) for name in LOSSES),
            *(Measured(f"distance from the data after descent, {NAMES[name]}", ends[name], 0, 1e-3) for name in LOSSES),
            Measured("way from distance 8 in 100 steps, saturating", moved["minimax"], 1e-3, 0, "at_most"),
            Measured("way from distance 8 in 100 steps, non-saturating", moved["non_saturating"], 4, 0, "at_least"),
        ),
        partial(_draw_fixed_point, paths, from_afar),
        panels=2,
    )


def what_each_loss_descends(seed: int = 0) -> Claim:
    """Against the best discriminator, each loss's gradient and that of the divergence which the theory names."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(12, 2, dtype=torch.float64, generator=generator) * 2 + torch.tensor((0.0, 0.3))
    errors = {name: max(difference(name, *place) for place in places.tolist()) for name in LOSSES}
    return Claim(
        "what-each-loss-descends",
        "Against the best discriminator the saturating loss descends 2 JSD(p_data, p_g), the non-saturating one "
        "KL(p_g || p_data) - 2 JSD(p_data, p_g).",
        "Goodfellow et al., 2014, theorem 1; Arjovsky and Bottou, 2017, theorem 2.5",
        tuple(
            Measured(f"largest difference of gradients at {len(places)} places, {NAMES[name]}", errors[name], 0, 1e-9)
            for name in LOSSES
        ),
        _draw_descended,
        panels=2,
    )


def training(seed: int, distance: float = 4.0, steps: int = 1000) -> Lesson:
    """Train a discriminator on N(0, 0.5²) against a generator at N(distance, 0.5²); see what it sends back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Chain(LinearAct(1, 16, activation="tanh"), LinearAct(16, 1, activation="none")).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-2)
    weights = torch.tensor((distance, 0.5), dtype=torch.float64, requires_grad=True)
    real = 0.5 * LATENTS[:, None]
    lesson = Lesson([], [], {name: [] for name in LOSSES})
    for step in range(steps + 1):
        if step % 20 == 0:
            logits = network(weights[0] + weights[1] * LATENTS[:, None])
            lesson.steps.append(step)
            lesson.score.append(float(torch.sigmoid(logits.detach()).mean()))
            for name in LOSSES:
                (gradient,) = torch.autograd.grad(generator_loss(name, logits), weights, retain_graph=True)
                lesson.strength[name].append(float(gradient.norm()))
        optimizer.zero_grad()
        loss = discriminator_loss("minimax", network(real), network(distance + real))
        loss.backward()
        optimizer.step()
    return lesson


def logit_slope(name: str, logits: Tensor) -> Tensor:
    """The derivative of the generator's loss by each logit, as if it were the only one."""
    logits = logits.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(generator_loss(name, logits), logits)
    return slopes * logits.numel()  # the loss is their mean


def pull(name: str, mean: float, std: float) -> Tensor:
    """The gradient of a loss in a normal generator's (mean, std) against the best discriminator, by quadrature."""
    weights = torch.tensor((mean, std), dtype=torch.float64, requires_grad=True)
    x = weights[0] + weights[1] * LINE
    logits = normal(*DATA).log_density(x) - normal(mean, std).log_density(x)  # of D*, which stands still
    expected = integral(normal().density(LINE) * logit_slope(name, logits) * logits)
    (gradient,) = torch.autograd.grad(expected, weights)
    return gradient


def descended(name: str, weights: Tensor) -> Tensor:
    """The divergence that a loss descends, of a normal generator with ``weights`` (mean, std); differentiable."""
    log_p = normal(*DATA).log_density(LINE)
    log_q = normal().log_density((LINE - weights[0]) / weights[1]) - weights[1].log()
    twice = 2 * jensen_shannon(log_p, log_q)
    return twice if name == "minimax" else kullback_leibler(log_q, log_p) - twice


def difference(name: str, mean: float, std: float) -> float:
    """How far the gradient of a loss and that of its divergence are apart."""
    weights = torch.tensor((mean, std), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(descended(name, weights), weights)
    return float((gradient - pull(name, mean, std)).norm())


def descent(name: str, start: tuple[float, float], steps: int = 300, rate: float = 0.1) -> list[tuple[float, float]]:
    """Gradient descent of a normal generator's (mean, std) on a loss, the discriminator at its best all the time."""
    path = [start]
    for _ in range(steps):
        mean, std = (torch.tensor(path[-1], dtype=torch.float64) - rate * pull(name, *path[-1])).tolist()
        path.append((mean, std))
    return path


def _draw_vanishing(lesson: Lesson, axes: Sequence[Any]) -> None:
    logits = torch.linspace(-15, 15, 301, dtype=torch.float64)
    for name in LOSSES:
        look = {"color": COLORS[name], "linewidth": 2, "label": NAMES[name]}
        axes[0].semilogy(logits, logit_slope(name, logits).abs(), **look)
        axes[1].semilogy(lesson.steps, lesson.strength[name], **look)
    axes[1].semilogy(lesson.steps, lesson.score, color="0.5", linestyle=":", label="mean D(G(z))")
    axes[0].set(title="|slope| of the loss", xlabel="logit of D(G(z))  (left: D is sure that it is fake)")
    axes[1].set(title="gradient that reaches the generator", xlabel="steps of D, G standing still")
    for axis in axes:
        axis.legend(loc="lower center" if axis is axes[0] else "lower left")


def _draw_fixed_point(paths: dict[str, Any], from_afar: dict[str, Any], axes: Sequence[Any]) -> None:
    for name in LOSSES:
        look = {"color": COLORS[name], "linewidth": 2, "label": NAMES[name]}
        axes[0].plot(*zip(*paths[name], strict=True), marker=".", **look)
        axes[1].plot([mean for mean, _ in from_afar[name]], **look)
    axes[0].plot(*DATA, "k*", markersize=12, label="data")
    axes[0].set(title="from nearby, both arrive", xlabel="mean of p_g", ylabel="standard deviation of p_g")
    axes[1].axhline(DATA[0], color="0.6", linewidth=0.8, linestyle=":")
    axes[1].set(title="from afar, one stays (dotted: the data)", xlabel="step", ylabel="mean of p_g", ylim=(0, 10))
    for axis in axes:
        axis.legend()


def _draw_descended(axes: Sequence[Any]) -> None:
    means = torch.linspace(-3, 5, 161, dtype=torch.float64)
    std = torch.tensor(DATA[1], dtype=torch.float64)
    for axis, name, formula in zip(axes, LOSSES, ("2 JSD", "KL(p_g || p_data) - 2 JSD"), strict=True):
        axis.plot(means, [descended(name, torch.stack([mean, std])) for mean in means], color=COLORS[name], linewidth=2)
        for mean in means[10:-1:20].tolist():
            height, steepness = float(descended(name, torch.tensor((mean, std)))), float(pull(name, mean, DATA[1])[0])
            run = 0.35 / math.hypot(1, steepness / 4)
            axis.plot((mean - run, mean + run), (height - run * steepness, height + run * steepness), "k", linewidth=1)
        axis.set(title=f"{NAMES[name]}: {formula}", xlabel="mean of p_g")
    axes[0].annotate("short lines: slope of the loss", (0.03, 0.05), xycoords="axes fraction", color="0.3", fontsize=8)


CLAIMS: tuple[Check, ...] = (saturating_gradient_vanishes, both_losses_share_the_fixed_point, what_each_loss_descends)
