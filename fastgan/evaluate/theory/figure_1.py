"""Figure 1 of Goodfellow et al., 2014, as a training that runs: from a bad start to D = 1/2.

Everything is a function on a grid and a quadrature: G(z) = mean + std * (normal quantile of z), z uniform in [0, 1], so
that p_g is known; D is its logit at each point of the grid, free of any network, as proposition 2 has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import require
from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import normal

DATA = normal(0.8, 0.6)
GRID = torch.linspace(-5, 5, 2001, dtype=torch.float64)
LATENTS = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
START = (-2.2, 1.1)  # mean and std of p_g
STEPS, N_CRITIC = 250, 4
RATE_D, RATE_G = 0.25, 0.04
REACH = 3.6  # of the drawn part of the line
FRAMES = 60
HOLD = 1500  # milliseconds that the first and the last frame stay
PACE = 80  # milliseconds of the others


@dataclass(frozen=True)
class Moment:
    """The game after ``step`` steps: p_g is normal with ``mean`` and ``std``, and D has ``logits`` on GRID."""

    step: int
    mean: float
    std: float
    logits: Tensor

    def generated(self, x: Tensor) -> Tensor:
        """p_g(x), of x's shape."""
        return normal(self.mean, self.std).density(x)

    def made(self, z: Tensor) -> Tensor:
        """G(z), of z's shape."""
        return self.mean + self.std * torch.special.ndtri(z)


def play() -> list[Moment]:
    """Algorithm 1 without noise: N_CRITIC ascents of D, one descent of G on -log D(G(z)), again and again.

    D climbs the gradient of V by its logits over the mass at each place, p_data (1 - D) - p_g D over p_data + p_g, so
    that it learns as fast in the tails.
    """
    mean, std = START
    logits = 0.8 * torch.sin(2.2 * GRID)  # a discriminator that has seen little
    moments = [Moment(0, mean, std, logits)]
    data = DATA.density(GRID)
    quantiles = torch.special.ndtri(LATENTS)
    for step in range(1, STEPS + 1):
        generated = moments[-1].generated(GRID)
        for _ in range(N_CRITIC):
            d = torch.sigmoid(logits)
            logits = logits + RATE_D * (data * (1 - d) - generated * d) / (data + generated)
        slope = torch.gradient(logits, spacing=(GRID,))[0]
        at = ((mean + std * quantiles - GRID[0]) / (GRID[1] - GRID[0])).round().long().clamp(0, len(GRID) - 1)
        pull = (1 - torch.sigmoid(logits[at])) * slope[at]  # of log D along x, at G(z)
        mean += RATE_G * float(pull.mean())
        std = max(0.05, std + RATE_G * float((pull * quantiles).mean()))
        moments.append(Moment(step, mean, std, logits))
    return moments


def figure_1(seed: int = 0) -> Claim:
    """Play the game of figure 1 and look at its end; ``seed`` changes nothing."""
    moments = play()
    first, last = moments[0], moments[-1]
    mass = GRID[(DATA.density(GRID) + last.generated(GRID)) > 1e-2]
    seen = torch.isin(GRID, mass)
    d = torch.sigmoid(last.logits)
    weight = (GRID[1] - GRID[0]) * torch.stack([DATA.density(GRID), last.generated(GRID)])
    value = float(-(weight[0] * F.softplus(-last.logits) + weight[1] * F.softplus(last.logits)).sum())
    start = float((DATA.density(GRID) - first.generated(GRID)).abs().sum() * (GRID[1] - GRID[0]) / 2)
    end = float((weight[0] - weight[1]).abs().sum() / 2)
    return Claim(
        "figure-1",
        "D learns to tell data from samples, its slope draws the samples to the data, and in the end p_g is p_data and "
        "D can but say 1/2.",
        "Goodfellow et al., 2014, figure 1, algorithm 1 and proposition 2",
        (
            Measured("total variation of p_g and p_data at the start", start, 0.9, 0, "at_least"),
            Measured("the same at the end", end, 0, 1e-2),
            Measured("largest |D - 1/2| at the end, where the data lie", float((d[seen] - 0.5).abs().max()), 0, 1e-2),
            Measured("V(D, G) at the end", value, -2 * math.log(2), 1e-3),
        ),
        lambda axes: _draw_stages(moments, axes),
        panels=4,
    )


def film(moments: Sequence[Moment]) -> Iterator[Any]:
    """The game as frames, one matplotlib figure each, ever farther apart; the last is the end."""
    figures = require("matplotlib.figure", why="drawing a frame")
    for moment in shown(moments):
        figure = figures.Figure(figsize=(5.6, 4.2), dpi=100, layout="constrained")  # no pyplot: no global state
        axis = figure.subplots()
        _draw(moment, axis)
        axis.set_title(f"step {moment.step}", fontsize=10)
        yield figure


def shown(moments: Sequence[Moment], frames: int = FRAMES) -> list[Moment]:
    """The moments of the film: every one at first, ever fewer later."""
    last = len(moments) - 1
    at = {round(last * (i / (frames - 1)) ** 2) for i in range(frames)}
    return [moments[index] for index in sorted(at)]


def animate(frames: Sequence[Path], path: Path) -> None:
    """Join PNG frames to a GIF that runs for ever and stays at both ends for a while."""
    pil = require("PIL.Image", why="writing a GIF")
    pictures = []
    for frame in frames:
        with pil.open(frame) as picture:
            pictures.append(picture.convert("RGB").quantize(64))
    times = [HOLD, *[PACE] * (len(pictures) - 2), HOLD]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)


def _draw(moment: Moment, axis: Any) -> None:
    """D, p_data and p_g over the line; below it the latents, and where G sends them."""
    inside = GRID.abs() <= REACH
    x = GRID[inside]
    axis.plot(x, DATA.density(x), "k:", linewidth=1.8, label="p_data")
    axis.plot(x, moment.generated(x), color="tab:green", linewidth=1.8, label="p_g")
    axis.plot(x, torch.sigmoid(moment.logits[inside]), "--", color="tab:blue", linewidth=1.8, label="D")
    axis.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    z = torch.linspace(0.02, 0.98, 17, dtype=torch.float64)
    for start, end in zip((REACH * (2 * z - 1)).tolist(), moment.made(z).tolist(), strict=True):
        if abs(end) <= REACH:
            arrow = {"arrowstyle": "->", "color": "0.35", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (end, -0.08), (start, -0.45), arrowprops=arrow)
    for height, name in ((-0.08, "x"), (-0.45, "z")):
        axis.plot((-REACH, REACH), (height, height), color="k", linewidth=0.8)
        axis.annotate(name, (REACH * 1.03, height), va="center", fontsize=9)
    axis.set(xlim=(-REACH * 1.1, REACH * 1.1), ylim=(-0.52, 1.35), xticks=(), yticks=(0, 0.5, 1))
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.legend(loc="upper left", ncols=3, frameon=False, fontsize=8)


def _draw_stages(moments: Sequence[Moment], axes: Sequence[Any]) -> None:
    """Four moments: the start, D at its best, the generator under way, the end."""
    gap = [abs(moment.mean - DATA.means[0]) for moment in moments]
    near = next(index for index, distance in enumerate(gap) if distance < gap[0] / 3)
    stages = ((0, "the start"), (12, "D has learned"), (near, "G follows D's slope"), (len(moments) - 1, "the end"))
    for axis, (index, text) in zip(axes, stages, strict=True):
        _draw(moments[index], axis)
        axis.set(title=f"step {moments[index].step}: {text}")


CLAIMS: tuple[Check, ...] = (figure_1,)
