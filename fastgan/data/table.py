"""A table of mixed columns as points, and back (Xu et al., 2019, Modeling Tabular Data using Conditional GAN, 4.2).

A column of numbers becomes alpha = (c - mu_k) / (4 sigma_k), followed by the one-hot of its mode k of a mixture of
Gaussians; a column of categories becomes a one-hot. A number that is missing has alpha 0 and a place of its own behind
the modes; a missing category is the category "".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastgan.data.bounded import one_line
from fastgan.data.cells import is_integer, is_missing, number
from fastgan.data.gaussians import Mode, densities
from fastgan.errors import UserError

Kind = Literal["integer", "float", "category"]
Points = npt.NDArray[np.float32]

FORMAT = "fastgan-table/1"
WIDTH = 4.0  # standard deviations of a mode that alpha = 1 stands for


class Span(NamedTuple):
    """Numbers ``start`` ... ``stop - 1`` of a point: ``alpha``, about in [-1, 1], or a ``onehot``."""

    start: int
    stop: int
    what: Literal["alpha", "onehot"]


@dataclass(frozen=True)
class Column:
    """One column: ``modes`` (mean, standard deviation, weight) where it holds numbers, else ``categories``."""

    name: str
    kind: Kind
    modes: tuple[Mode, ...] = ()
    categories: tuple[str, ...] = ()
    missing: bool = False  # whether numbers may be missing
    decimals: int | None = None  # of a float, at most; None: as many as float32 has

    @property
    def choices(self) -> int:
        """Length of its one-hot."""
        return len(self.categories) or len(self.modes) + self.missing

    @property
    def width(self) -> int:
        """Numbers of a point that it takes."""
        return self.choices + (self.kind != "category")

    def encode(self, cells: Sequence[str], random: np.random.Generator) -> Points:
        """Return cells as (n, width). The mode of a number is drawn by how likely each is. Raises ValueError."""
        out = np.zeros((len(cells), self.width), np.float32)
        rows = np.arange(len(cells))
        texts = [cell.strip() for cell in cells]
        if self.kind == "category":
            places = {category: at for at, category in enumerate(self.categories)}
            out[rows, [places[_canonical(text, places)] for text in texts]] = 1
            return out
        values = np.array([_value(text, self.missing) for text in texts])
        absent = np.isnan(values)
        logs = densities(np.where(absent, 0.0, values), self.modes)
        chances = np.exp(logs - logs.max(axis=1, keepdims=True)).cumsum(axis=1)
        drawn = (random.random((len(cells), 1)) * chances[:, -1:] >= chances).sum(axis=1).clip(max=len(self.modes) - 1)
        means, sigmas, _ = np.asarray(self.modes).T
        out[:, 0] = np.where(absent, 0.0, (values - means[drawn]) / (WIDTH * sigmas[drawn]))
        out[rows, 1 + np.where(absent, len(self.modes), drawn)] = 1
        return out

    def decode(self, points: npt.NDArray[Any]) -> list[str]:
        """Return (n, width) as cells: what is likeliest by the one-hot."""
        if self.kind == "category":
            return [self.categories[at] for at in points.argmax(axis=1)]
        chosen = points[:, 1:].argmax(axis=1)
        absent = chosen == len(self.modes)
        means, sigmas, _ = np.asarray(self.modes).T
        at = np.where(absent, 0, chosen)
        values = points[:, 0].astype(np.float64) * (WIDTH * sigmas[at]) + means[at]
        return ["" if gone else self._text(value) for gone, value in zip(absent, values, strict=True)]

    def _text(self, value: float) -> str:
        if self.kind == "integer":
            return str(round(value))
        return str(np.float32(value)) if self.decimals is None else str(round(float(value), self.decimals) + 0.0)


@dataclass(frozen=True)
class Table:
    """Columns in their order. `encode` and `decode` are each other's inverse.

    Categories come back exactly, integers too where they lie within 2^22 of their mode's mean, floats to float32, with
    their column's decimals where those are known.
    """

    columns: tuple[Column, ...]

    @property
    def width(self) -> int:
        """Numbers of a point."""
        return sum(column.width for column in self.columns)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The parts of a point, in order."""
        spans: list[Span] = []
        at = 0
        for column in self.columns:
            if column.kind != "category":
                spans.append(Span(at, at + 1, "alpha"))
                at += 1
            spans.append(Span(at, at + column.choices, "onehot"))
            at += column.choices
        return tuple(spans)

    def encode(self, rows: Sequence[Sequence[str]], *, seed: int = 0) -> Tensor:
        """Return rows of cells as points, (n, width) float32. ``seed`` decides where a number could be of two modes.

        Raises:
            UserError: A row of another length, a category that is not known, text where numbers are.
        """
        return torch.from_numpy(self.encoded(rows, np.random.default_rng(seed)))

    def encoded(self, rows: Sequence[Sequence[str]], random: np.random.Generator) -> Points:
        """`encode` by a generator that goes on."""
        for at, row in enumerate(rows):
            if len(row) != len(self.columns):
                raise UserError(f"row {at} has {len(row)} cells and the table {len(self.columns)} columns")
        out = np.empty((len(rows), self.width), np.float32)
        at = 0
        for place, column in enumerate(self.columns):
            try:
                out[:, at : at + column.width] = column.encode([row[place] for row in rows], random)
            except ValueError as error:
                raise UserError(f"column {column.name!r}: {error}") from error
            at += column.width
        return out

    def decode(self, points: Tensor) -> list[list[str]]:
        """Return points, (n, width) of any floats, as rows of cells; what is missing is an empty cell.

        Raises:
            UserError: Points of another width.
        """
        if points.dim() != 2 or points.shape[1] != self.width:
            raise UserError(f"the table's points are (n, {self.width}), not {tuple(points.shape)}")
        numbers = points.detach().to("cpu", torch.float32).numpy()
        columns, at = [], 0
        for column in self.columns:
            columns.append(column.decode(numbers[:, at : at + column.width]))
            at += column.width
        return [list(row) for row in zip(*columns, strict=True)]

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps({"format": FORMAT, "columns": [asdict(column) for column in self.columns]}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read what `to_json` wrote. Raises UserError for anything else."""
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise ValueError(f"of the format {body['format']!r}")
            columns = tuple(_column(entry) for entry in body["columns"])
            if not columns:
                raise ValueError("without a column")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"this is no table in JSON ({one_line(error)[:100]}): write it with Table.to_json"
            ) from error
        return cls(columns)


def _column(entry: dict[str, Any]) -> Column:
    modes = tuple((float(mean), float(sigma), float(weight)) for mean, sigma, weight in entry["modes"])
    categories = tuple(entry["categories"])
    decimals = entry.get("decimals")
    column = Column(entry["name"], entry["kind"], modes, categories, bool(entry["missing"]), decimals)
    numbers = column.kind != "category"
    if column.kind not in get_args(Kind) or not all(isinstance(word, str) for word in (column.name, *categories)):
        raise ValueError("a column of another kind")
    if decimals is not None and (column.kind != "float" or type(decimals) is not int or not 0 <= decimals < 100):
        raise ValueError(f"column {column.name!r} with decimals that are none")
    if bool(modes) != numbers or bool(categories) == numbers or len(set(categories)) < len(categories):
        raise ValueError(f"column {column.name!r} without its modes or categories")
    if not all(np.isfinite(mode).all() and mode[1] > 0 and mode[2] > 0 for mode in modes):
        raise ValueError(f"column {column.name!r} with modes that are none")
    return column


def _canonical(text: str, places: dict[str, int]) -> str:
    if text in places:
        return text
    if is_missing(text) and "" in places:
        return ""
    if is_integer(text) and (whole := str(int(float(text)))) in places:
        return whole
    raise ValueError(f"{text[:60]!r} is none of its {len(places)} categories")


def _value(text: str, missing: bool) -> float:
    value = number(text)
    if value is not None and np.isfinite(value):
        return value
    if missing and is_missing(text):
        return float("nan")
    raise ValueError(f"{text[:60]!r} is no number that it can hold")
