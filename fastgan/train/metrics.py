"""Metrics: means gathered on the device between two readings, and the CSV file that they are written to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.train.files import replacing

COLUMNS = (
    "step",
    "images",
    "loss_d",
    "loss_g",
    "d_real",
    "d_fake",
    "penalty",
    "wasserstein",
    "skipped",
    "seconds",
)
MEANS = COLUMNS[2:8]
HEADER = ",".join(COLUMNS)

Row = dict[str, float | int | None]


class Meter:
    """Running sums on the device. ``add`` costs no synchronisation; ``read`` is the only one and starts anew."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(MEANS), device=device)  # in the order of MEANS
        self.counts = [0] * len(MEANS)

    def add(self, **values: Tensor) -> None:
        """Add one observation of each named metric."""
        for name, value in values.items():
            index = MEANS.index(name)
            self.sums[index] += value.detach()
            self.counts[index] += 1

    def read(self) -> Row:
        """The mean of each metric since the last reading; None where nothing was added."""
        sums, counts = self.sums.tolist(), self.counts
        self.sums.zero_()
        self.counts = [0] * len(MEANS)
        return {name: total / n if n else None for name, total, n in zip(MEANS, sums, counts, strict=True)}


def finite(row: Row) -> bool:
    """Whether every metric of the row that applies is a finite number."""
    return all(value is None or math.isfinite(value) for value in row.values())


class MetricsFile:
    """``metrics.csv`` of a run: a row per reading, empty cells where a metric does not apply."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Row) -> None:
        """Write one row; the header comes first in a new file."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_line(row) if file.tell() else f"{HEADER}\n{_line(row)}")

    def read(self, last_step: int) -> list[Row]:
        """The rows up to ``last_step``; what a crash cut short is left out. Raises UserError on a foreign file."""
        if not self.path.exists():
            return []
        header, *lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        if header != HEADER and (lines or not HEADER.startswith(header)):
            raise UserError(f"{self.path} is not a metrics file of fastgan: move it away, then resume")
        rows = [_parse(line.split(",")) for line in lines]
        return [row for row in rows if row and row["step"] is not None and row["step"] <= last_step]

    def rewind(self, last_step: int) -> list[Row]:
        """Drop the rows beyond ``last_step``, which a resumed run will write again, and return those kept."""
        rows = self.read(last_step)
        if self.path.exists():
            with replacing(self.path) as temporary:
                temporary.write_text("".join([f"{HEADER}\n", *map(_line, rows)]), encoding="utf-8", newline="")
        return rows


def _line(row: Row) -> str:
    values = [row.get(column) for column in COLUMNS]
    # repr: the number that is read back is the number that was written
    return ",".join("" if value is None else repr(value) for value in values) + "\n"


def _parse(line: Sequence[str]) -> Row | None:
    if len(line) != len(COLUMNS):
        return None
    whole = {"step", "images", "skipped"}
    try:
        return {
            column: None if cell == "" else int(cell) if column in whole else float(cell)
            for column, cell in zip(COLUMNS, line, strict=True)
        }
    except ValueError:
        return None
