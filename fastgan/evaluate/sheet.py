"""Sheets of images in rows, with words beside and above them: what metrics draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgan.errors import require

INCH = 0.9  # of an image


@dataclass(frozen=True)
class Row:
    """Images ``(n, C, H, W)`` in [-1, 1] side by side, what they are, and what stands above each.

    Images of other than 1 or 3 channels are shown by their first.
    """

    title: str
    images: Tensor
    words: Sequence[str] = ()


def sheet(rows: Sequence[Row], title: str = "", marked: int = 0) -> Any:
    """Draw rows of images; the first ``marked`` of each have a frame. Returns the matplotlib figure.

    Raises:
        UserError: matplotlib is missing.
    """
    figures = require("matplotlib.figure", why="drawing a sheet of images")
    columns = max(len(row.images) for row in rows)
    taller = 1.35 if any(row.words for row in rows) else 1.05
    margin = 0.06 * max((len(row.title) for row in rows), default=0) + 0.1
    size = (margin + INCH * columns, INCH * taller * len(rows) + (0.45 if title else 0.1))
    figure = figures.Figure(figsize=size, dpi=110)  # no pyplot: no window, no global state
    for line, row in enumerate(rows):
        bottom = 0.05 / size[1] + (len(rows) - 1 - line) * INCH * taller / size[1]
        for column, image in enumerate(_shown(row.images)):
            left = (margin + INCH * column) / size[0]
            axis = figure.add_axes((left, bottom, 0.94 * INCH / size[0], 0.94 * INCH / size[1]))
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=(), yticks=())
            axis.spines[:].set(visible=column < marked, color="tab:orange", linewidth=2)
            if column < len(row.words):
                axis.set_title(row.words[column], fontsize=7, pad=2)
        middle = bottom + 0.47 * INCH / size[1]
        figure.text(0.05 / size[0], middle, row.title, fontsize=7.5, va="center", ha="left")
    if title:
        figure.text(0.5, 1 - 0.2 / size[1], title, fontsize=9, ha="center", va="center")
    return figure


def _shown(images: Tensor) -> Any:
    """Values in 0 ... 1 as matplotlib takes them: ``(n, H, W)``, or ``(n, H, W, 3)``; what is not finite is grey."""
    shown = ((images.detach().float().cpu().clamp(-1, 1) + 1) / 2).nan_to_num(nan=0.5)
    return shown.permute(0, 2, 3, 1).numpy() if shown.shape[1] == 3 else shown[:, 0].numpy()


def amplified(change: Tensor) -> tuple[Tensor, int]:
    """A change of images, times a round number by which it fills [-1, 1], and that number."""
    largest = float(change.abs().max())
    factor = max(1, math.floor(1 / largest)) if largest > 0 else 1
    return change * factor, factor
