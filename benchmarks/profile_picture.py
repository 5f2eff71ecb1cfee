"""A picture of one step's timeline: a lane for each phase, a color for each layer."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from fastgan.benchmarks.profile_rows import PHASES, Report, duration
from fastgan.benchmarks.profile_trace import Piece
from fastgan.errors import require

WIDTH, LANE = 14.0, 0.5  # inches
GREYS = (14, 15)  # of the palette: they would look like everything else
GREY = "#b8b8b8"
WHY = "drawing the timeline"
LETTER = 0.005  # of the step's length: the room that a letter of a name takes


def draw(report: Report, title: str, path: Path) -> None:
    """Draw the step whose length is nearest to what is reported."""
    figures, patch = require("matplotlib.figure", why=WHY), require("matplotlib.patches", why=WHY).Patch
    pieces = chosen(report)
    begin, end = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
    unit, word = (1.0, "us") if end - begin < 2000 else (1e3, "ms")
    lanes = [phase for phase in PHASES if any(piece.range.phase == phase for piece in pieces)]
    colors = colors_of(pieces)
    height = 1.9 + LANE * len(lanes) + 0.19 * -(-(len(colors) + 1) // 4)
    figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for at, phase in enumerate(lanes):
        own = [piece for piece in pieces if piece.range.phase == phase]
        bars = [((piece.start - begin) / unit, piece.us / unit) for piece in own]
        faces = [colors.get(piece.range.layer, GREY) for piece in own]
        axes.broken_barh(bars, (at - 0.4, 0.8), facecolors=faces, linewidth=0)
        for left, right, layer in stretches(own):
            text = short(layer)
            if right - left > LETTER * len(text) * (end - begin):
                middle = ((left + right) / 2 - begin) / unit
                axes.text(middle, at, text, ha="center", va="center", fontsize=7, clip_on=True)
    times = {row.phase: f"{row.phase}  {duration(row.us)}, {row.share:.0%}" for row in report.phases}
    axes.set_yticks(range(len(lanes)), [times.get(phase, phase) for phase in lanes])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlim(0, (end - begin) / unit)
    axes.set_xlabel(f"{word} since the step began; beside each phase what it usually takes, and its share")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    patches = [patch(color=color, label=layer) for layer, color in colors.items()]
    patches.append(patch(color=GREY, label="everything else"))
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def chosen(report: Report) -> list[Piece]:
    """Return the pieces of the step whose length is nearest to what is reported."""
    by_step: defaultdict[int, list[Piece]] = defaultdict(list)
    for piece in report.profile.pieces:
        by_step[piece.step].append(piece)
    return min(by_step.values(), key=lambda own: abs(sum(piece.us for piece in own) - report.total_us))


def colors_of(pieces: list[Piece]) -> dict[str, Any]:
    """Give the layers that take longest a color each, in the order in which a step meets them."""
    colormaps = require("matplotlib", why=WHY).colormaps
    palette = [color for at, color in enumerate(colormaps["tab20"].colors) if at not in GREYS]
    times: defaultdict[str, float] = defaultdict(float)
    for piece in pieces:
        if piece.range.layer:
            times[piece.range.layer] += piece.us
    longest = {*sorted(times, key=lambda layer: -times[layer])[: len(palette)]}
    return dict(zip((layer for layer in times if layer in longest), palette, strict=False))


def stretches(pieces: list[Piece]) -> list[tuple[float, float, str]]:
    """Join a lane's pieces of one layer that follow each other closely: where a name may stand."""
    joined: list[tuple[float, float, str]] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        last = joined[-1] if joined else None
        if last is not None and last[2] == piece.range.layer and piece.start - last[1] <= 0.1 * piece.us + 1:
            joined[-1] = (last[0], piece.end, last[2])
        else:
            joined.append((piece.start, piece.end, piece.range.layer))
    return joined


def short(layer: str) -> str:
    """Return a layer's path without its class."""
    return layer.split(" ")[0] if layer.startswith(("G.", "D.")) else layer
