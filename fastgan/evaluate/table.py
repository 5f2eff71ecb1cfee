"""Rows of a table beside the rows they were learnt from: each column alone, each pair of columns, and copies.

Two laws are as far apart as their cells: the total variation of categories, the Kolmogorov-Smirnov distance of numbers,
both 0 for equal laws and 1 for laws that share nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgan.data import Dataset
from fastgan.data.table import Column, Table
from fastgan.errors import UserError, require
from fastgan.evaluate.metric import Result, Subject, chosen

CHEAP = True
SAMPLES = 10_000
BINS = 10  # of a number's values, as many data in each, where pairs are compared
SHOWN = 12  # columns in the picture, and bars of a column
BARS = 40  # of a number's histogram
REFERENCE = "one minus KSComplement and TVComplement of SDMetrics; pairs as its ContingencySimilarity"

Cells = npt.NDArray[np.float64] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Distances:
    """How far two tables are apart: by column, and by pair of columns; each between 0 and 1."""

    columns: Mapping[str, float]
    pairs: Mapping[str, float]


def values(table: Table, rows: Sequence[Sequence[str]]) -> list[Cells]:
    """Rows of text as arrays ``(n,)``, one a column: places of categories, or numbers, infinite where missing."""
    return [_column(column, [row[at] for row in rows]) for at, column in enumerate(table.columns)]


def distances(table: Table, rows: Sequence[Cells], real: Sequence[Cells]) -> Distances:
    """Distances of two tables whose cells `values` has read. Numbers of a pair are told apart by the data's deciles."""
    names = [column.name for column in table.columns]
    alone = {
        name: total_variation(mine, theirs, column.choices)
        if column.kind == "category"
        else kolmogorov_smirnov(mine, theirs)
        for name, column, mine, theirs in zip(names, table.columns, rows, real, strict=True)
    }
    coded = [_coded(column, *both) for column, *both in zip(table.columns, rows, real, strict=True)]
    pairs = {
        f"{names[i]} x {names[j]}": total_variation(
            coded[i][0] * coded[j][2] + coded[j][0], coded[i][1] * coded[j][2] + coded[j][1], coded[i][2] * coded[j][2]
        )
        for i, j in combinations(range(len(names)), 2)
    }
    return Distances(alone, pairs)


def total_variation(mine: Cells, theirs: Cells, kinds: int) -> float:
    """Half the sum over ``kinds`` of the differences between shares, of integers ``(n,)`` and ``(m,)`` below kinds."""
    shares = [np.bincount(cells.astype(np.int64), minlength=kinds) / len(cells) for cells in (mine, theirs)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def kolmogorov_smirnov(mine: Cells, theirs: Cells) -> float:
    """Largest difference between the shares of numbers up to x, over all x; what is missing is infinite."""
    at = np.unique(np.concatenate((mine, theirs)))
    shares = [np.searchsorted(np.sort(cells), at, side="right") / len(cells) for cells in (mine, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


def suits(dataset: Dataset) -> str | None:
    """Why ``dataset`` has no rows to compare; None where it has."""
    return None if dataset.table else f"it compares rows of a table, as csv:PATH has them, and not {dataset.name}"


def measure(subject: Subject, n: int | None = None) -> Result:
    """Compare ``n`` rows, 10,000 or as many as the data have, with as many of the data as there are, up to 50,000."""
    known = subject.data.table
    if known is None:
        raise UserError(f"rows cannot be compared: {suits(subject.data)}")
    table = subject.table or known
    if _cells(table) != _cells(known):
        raise UserError(
            f"{subject.data.name} has other columns or categories than the generator: name the table it was trained on"
        )
    n = n or min(SAMPLES, len(subject.data))
    random = subject.random()
    text = known.decode(chosen(subject.data, min(len(subject.data), 5 * SAMPLES), random))
    made = table.decode(subject.sample(n))
    real, mine = values(known, text), values(known, made)
    again = np.random.default_rng(subject.seed).integers(len(text), size=n)
    found, fresh = distances(known, mine, real), distances(known, [cells[again] for cells in real], real)
    there = Counter(map(tuple, text))
    return Result(
        "table",
        {
            "columns, mean distance": _mean(found.columns),
            "columns, largest": max(found.columns.values()),
            "columns, mean distance of fresh rows": _mean(fresh.columns),
            "pairs, mean distance": _mean(found.pairs),
            "pairs, largest": max(found.pairs.values(), default=0.0),
            "pairs, mean distance of fresh rows": _mean(fresh.pairs),
            "copies %": 100 * sum(tuple(row) in there for row in made) / n,
            "rows of the data that it has twice %": 100 * sum(k for k in there.values() if k > 1) / len(text),
        },
        f"{n} rows ({subject.origin}) beside {len(text)} of the data; a column: total variation of categories,"
        f" Kolmogorov-Smirnov of numbers; a pair: total variation, numbers by the data's {BINS} quantiles; fresh rows:"
        " as many drawn from the data, with replacement; a copy: all cells are those of a row of the data",
        {"table.png": lambda path: picture(known, mine, real, found).savefig(path, format="png")},
        REFERENCE,
        reading=_reading(found),
    )


def picture(table: Table, rows: Sequence[Cells], real: Sequence[Cells], found: Distances) -> Any:
    """Draw the columns that are farthest apart, or all of them, in the table's order; return the matplotlib figure."""
    figures = require("matplotlib.figure", why="drawing a table's columns")
    worst = sorted(range(len(table.columns)), key=lambda at: -found.columns[table.columns[at].name])[:SHOWN]
    across = min(3, len(worst))
    down = -(-len(worst) // across)
    figure = figures.Figure(figsize=(3.4 * across, 2.3 * down + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, at in zip(axes, sorted(worst), strict=False):
        column = table.columns[at]
        draw = _bars if column.kind == "category" else _steps
        draw(axis, column, rows[at], real[at])
        axis.set_title(f"{column.name}: {found.columns[column.name]:.3f}".replace("$", r"\$"), fontsize=8)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(worst) :]:
        axis.set_axis_off()
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("share of rows by column, and the distance between data and samples", fontsize=9)
    return figure


def _bars(axis: Any, column: Column, mine: Cells, theirs: Cells) -> None:
    counts = [np.bincount(cells.astype(np.int64), minlength=column.choices) for cells in (theirs, mine)]
    most = np.argsort(-counts[0], kind="stable")[:SHOWN]
    at = np.arange(len(most))
    for shift, count, cells, name, colour in zip(
        (-0.2, 0.2), counts, (theirs, mine), ("data", "samples"), ("0.7", "tab:orange"), strict=True
    ):
        axis.bar(at + shift, count[most] / len(cells), 0.4, color=colour, label=name)
    words = [(column.categories[place] or "(missing)")[:12].replace("$", r"\$") for place in most]
    axis.set_xticks(at, words, rotation=30 if max(map(len, words)) * len(words) > 30 else 0, ha="center")


def _steps(axis: Any, column: Column, mine: Cells, theirs: Cells) -> None:
    there = theirs[np.isfinite(theirs)]
    low, high = np.quantile(there, (0.001, 0.999)) if len(there) else (0.0, 1.0)
    edges = np.linspace(low, max(high, np.nextafter(low, np.inf)), BARS + 1)
    if column.kind == "integer":  # as many whole numbers in each bar
        width = np.ceil((high - low + 1) / BARS)
        edges = np.arange(np.floor(low) - 0.5, high + width, width)
    for cells, name, style in (
        (theirs, "data", {"color": "0.7", "fill": True}),
        (mine, "samples", {"color": "tab:orange", "fill": False}),
    ):
        inside = np.clip(cells[np.isfinite(cells)], edges[0], edges[-1])  # the rest stands at the ends
        axis.stairs(np.histogram(inside, edges)[0] / len(cells), edges, label=name, **style)


def _cells(table: Table) -> list[tuple[str, str, tuple[str, ...]]]:
    """What cells are made of, whatever the modes of numbers."""
    return [(column.name, column.kind, column.categories) for column in table.columns]


def _column(column: Column, cells: Sequence[str]) -> Cells:
    if column.kind == "category":
        places = {category: at for at, category in enumerate(column.categories)}
        return np.array([places[cell] for cell in cells], np.int64)
    return np.array([float(cell) if cell else np.inf for cell in cells])


def _coded(column: Column, mine: Cells, theirs: Cells) -> tuple[Cells, Cells, int]:
    """Both as integers, and how many there are of them."""
    if column.kind == "category":
        return mine, theirs, column.choices
    finite = theirs[np.isfinite(theirs)]
    edges = np.unique(np.quantile(finite, np.arange(1, BINS) / BINS)) if len(finite) else np.zeros(0)
    codes = [
        np.where(np.isfinite(cells), np.searchsorted(edges, cells, side="right"), len(edges) + 1)
        for cells in (mine, theirs)
    ]
    return codes[0], codes[1], len(edges) + 2


def _mean(of: Mapping[str, float]) -> float:
    return sum(of.values()) / len(of) if of else 0.0


def _reading(found: Distances) -> str:
    worst = [max(of.items(), key=lambda item: item[1]) for of in (found.columns, found.pairs) if of]
    return "farthest from the data: " + "; ".join(f"{name[:80]} ({far:.3f})" for name, far in worst)
