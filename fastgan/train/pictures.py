"""The pictures that a run leaves: sample grids, point clouds, and the curves of losses and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgan.errors import UserError, require
from fastgan.train.files import replacing
from fastgan.train.metrics import Row

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
EQUILIBRIUM = {  # objective -> losses of D and G where D = 1/2, and how a title says them
    "non_saturating": (2 * math.log(2), math.log(2), "2 log 2 and log 2"),
    "minimax": (2 * math.log(2), -math.log(2), "2 log 2 and -log 2"),
    "least_squares": (0.25, 0.125, "1/4 and 1/8"),
}
SMALL = 64  # images below this side are enlarged, pixel by pixel, so that a person sees them


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be shown: images ``(C, H, W)`` with a known C, or points in the plane."""
    return (len(shape) == 3 and shape[0] in CHANNELS) or tuple(shape) == (2,)


def grid(samples: Tensor, columns: int | None = None) -> Image:
    """Images ``(n, C, H, W)`` in [-1, 1], C 1, 3 or 4, in rows of ``columns``, else about square."""
    if samples.ndim != 4 or samples.shape[1] not in CHANNELS or not len(samples):
        raise UserError(
            f"a sample grid shows images of 1, 3 or 4 channels, not samples of shape {tuple(samples.shape)}"
        )
    zoom = max(1, round(SMALL / max(samples.shape[2:])))
    tiles = pixels(samples).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1)
    n, height, width, channels = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    gap = max(2, zoom // 2)
    rows = math.ceil(n / columns)
    sheet = torch.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 32, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        top, left = (
            gap + size * (side + gap) for size, side in zip(divmod(index, columns), (height, width), strict=True)
        )
        sheet[top : top + height, left : left + width] = tile
    return _picture(sheet)


def image(sample: Tensor) -> Image:
    """One image ``(C, H, W)`` in [-1, 1] at its own size."""
    return _picture(pixels(sample).permute(1, 2, 0))


def pixels(samples: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8 on the CPU; what lies outside is clipped."""
    return ((samples.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_samples(
    samples: Tensor, path: Path, *, real: Tensor | None = None, title: str = "", columns: int | None = None
) -> None:
    """Draw samples into a PNG: images as a grid in rows of ``columns``, 2-D points over a cloud of ``real`` ones."""
    if samples.ndim == 2 and samples.shape[1] == 2:
        _save_figure(_points(samples, real, title), path)
    else:
        picture = grid(samples, columns)
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG")


def save_curves(rows: Sequence[Row], path: Path, objective: str = "") -> None:
    """Draw losses, and mean scores D(x), D(G(z)) or what a critic estimates, with their values at equilibrium.

    Those of the losses stand there for an ``objective`` in EQUILIBRIUM only.
    """
    figure, (losses, beside) = _figure(1, 2, (11, 4))
    scores = any(row.get("d_real") is not None for row in rows)
    _curves(losses, rows, {"loss_d": "loss of D", "loss_g": "loss of G"})
    if scores:
        _curves(beside, rows, {"d_real": "D(x), real", "d_fake": "D(G(z)), fake"}, (0.5,))
        of_d, of_g, said = EQUILIBRIUM.get(objective, (None, None, ""))
        for level in (of_d, of_g):
            if level is not None:
                losses.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
        losses.set_title(f"losses (dashed: {said}, where D = 1/2)" if said else "losses", fontsize=10)
        beside.set_title("mean scores (dashed: 1/2)", fontsize=10)
        seen = beside.dataLim.intervaly  # the outputs of least squares may lie beyond 0 and 1
        beside.set_ylim(min(0.0, seen[0]), max(1.0, seen[1]))
    else:
        _curves(beside, rows, {"wasserstein": "mean D(x) - mean D(G(z))", "penalty": "penalty"}, (0.0,))
        losses.set_title("losses", fontsize=10)
        beside.set_title("the critic's estimate of the distance (dashed: 0)", fontsize=10)
    _save_figure(figure, path)


def _curves(axis: Any, rows: Sequence[Row], lines: Mapping[str, str], levels: Sequence[float] = ()) -> None:
    """Draw columns of the metrics against the step, where they have values; ``levels`` are dashed."""
    steps = [row["step"] for row in rows]
    for (name, text), color in zip(lines.items(), ("tab:blue", "tab:orange"), strict=False):
        values = [math.nan if (value := row.get(name)) is None else value for row in rows]
        if not any(map(math.isfinite, values)):
            continue
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        alone = "o" if len(rows) == 1 else None  # a line through one point shows nothing
        axis.plot(steps, _smooth(values), color=color, label=text, linewidth=1.6, marker=alone)
    for level in levels:
        axis.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
    axis.set_xlabel("step")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _picture(array: Tensor) -> Image:
    """``(H, W, C)`` uint8 as a Pillow image."""
    pil = require("PIL.Image", why="drawing pictures")
    picture: Image = pil.fromarray((array.squeeze(2) if array.shape[2] == 1 else array).contiguous().numpy())
    return picture


def _points(samples: Tensor, real: Tensor | None, title: str) -> Any:
    figure, axis = _figure(1, 1, (6, 6))
    fake = samples.detach().float().cpu()
    if real is not None:
        axis.scatter(*real.cpu().T, s=6, color="0.75", label="real", linewidths=0)
        reach = float(real.abs().max()) * 1.4
        axis.set_xlim(-reach, reach)
        axis.set_ylim(-reach, reach)
    axis.scatter(*fake.T, s=6, color="tab:orange", alpha=0.6, label="generated", linewidths=0)
    axis.set_aspect("equal")
    axis.set_title(title, fontsize=10)
    axis.legend(loc="upper right", frameon=False, markerscale=3)
    return figure


def _smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Exponential mean over about ``share`` of the curve; the first points are not pulled to zero."""
    keep = 1 - 1 / max(1.0, share * len(values))
    smooth: list[float] = []
    total = weight = 0.0
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figures = require("matplotlib.figure", why="drawing curves")
    figure = figures.Figure(figsize=size, dpi=110, layout="constrained")  # no pyplot: no window, no global state
    return figure, figure.subplots(rows, columns)


def _save_figure(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
