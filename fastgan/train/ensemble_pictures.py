"""One picture of an ensemble: what each member makes, side by side, and the losses of all as a band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastgan.errors import require
from fastgan.train import pictures
from fastgan.train.metrics import Row

POINTS, IMAGES = 2500, 16  # of each member
COLUMNS = 5  # of panels
BANDS = {"loss_d": ("loss of D", "tab:blue"), "loss_g": ("loss of G", "tab:orange")}


def save_summary(
    path: Path, samples: Tensor, histories: Sequence[Sequence[Row]], *, titles: Sequence[str], real: Tensor
) -> None:
    """Draw each member's samples (members, n, ...), where they can be shown, above mean and spread of the losses."""
    shown = list(zip(titles, samples.detach().float().cpu(), strict=True)) if _drawable(samples) else []
    columns = min(COLUMNS, max(len(shown), 1))
    rows = math.ceil(len(shown) / columns)
    module = require("matplotlib.figure", why="drawing the summary")
    figure = module.Figure(figsize=(max(7.0, 2.6 * columns), 2.6 * rows + 4), dpi=110, layout="constrained")
    grid = figure.add_gridspec(rows + 2, columns)
    reach = float(real.abs().max()) * 1.4 if real.ndim == 2 else 1.0
    for at, (title, own) in enumerate(shown):
        panel = figure.add_subplot(grid[at // columns, at % columns])
        panel.set_title(title, fontsize=8)
        panel.axis("off")
        if own.ndim == 2:
            panel.scatter(*real.cpu().T, s=2, color="0.75", linewidths=0)
            panel.scatter(*own.T, s=1, color="tab:orange", alpha=0.4, linewidths=0)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        else:
            panel.imshow(pictures.grid(own), cmap="gray", vmin=0, vmax=255)
    _bands(figure.add_subplot(grid[rows:, :]), histories)
    pictures._save_figure(figure, path)


def shown(sample_shape: Sequence[int]) -> int:
    """How many samples of each member the picture shows."""
    return POINTS if tuple(sample_shape) == (2,) else IMAGES


def _drawable(samples: Tensor) -> bool:
    return pictures.drawable(samples.shape[2:])


def _bands(axis: Any, histories: Sequence[Sequence[Row]]) -> None:
    """Draw each loss's mean over the members against the step, in a band of one standard deviation."""
    for name, (text, color) in BANDS.items():
        by_step: dict[int, list[float]] = {}
        for row in (row for rows in histories for row in rows):
            value = row.get(name)
            if value is not None and math.isfinite(value):
                by_step.setdefault(int(row["step"] or 0), []).append(float(value))
        means, lows, highs = _spread(by_step)
        if means:
            axis.plot(list(means), list(means.values()), color=color, label=text, marker="o" if len(means) == 1 else "")
            axis.fill_between(list(means), lows, highs, color=color, alpha=0.2, linewidth=0)
    axis.set_title("losses: mean over the members, and one standard deviation", fontsize=10)
    axis.set_xlabel("step")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _spread(by_step: Mapping[int, Sequence[float]]) -> tuple[dict[int, float], list[float], list[float]]:
    means = {step: statistics.fmean(values) for step, values in sorted(by_step.items())}
    wide = [statistics.stdev(by_step[step]) if len(by_step[step]) > 1 else 0.0 for step in means]
    pairs = list(zip(means.values(), wide, strict=True))
    return means, [mean - std for mean, std in pairs], [mean + std for mean, std in pairs]
