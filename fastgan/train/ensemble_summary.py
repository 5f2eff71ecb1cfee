"""What came of an ensemble: each metric's last value by member, its mean and its spread."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastgan.data.dataset import Modes
from fastgan.train.ensemble_plan import Plan
from fastgan.train.files import replacing
from fastgan.train.metrics import Row

METRICS = ("loss_d", "loss_g", "d_real", "d_fake", "wasserstein", "penalty", "diversity", "gradient_g", "skipped")
NEAR = 3.0  # standard deviations from a mode's centre within which a point is of high quality
COLUMNS = ("metric", "members", "mean", "std", "min", "max")


@dataclass(frozen=True)
class Line:
    """One metric: each member's last value, None where it has none or is gone."""

    metric: str
    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.known)

    @property
    def std(self) -> float:
        """Their standard deviation as a sample's (n - 1); NaN of fewer than two."""
        return statistics.stdev(self.known) if len(self.known) > 1 else math.nan


@dataclass(frozen=True)
class Summary:
    """``lines`` by metric, ``gone`` by member; as text, a table."""

    lines: tuple[Line, ...]
    plan: Plan
    gone: Mapping[int, int]

    def __str__(self) -> str:
        rows = [COLUMNS, *(tuple(map(_short, _cells(line))) for line in self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text = [
            "  ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(each))
            for each in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        gone = ", ".join(f"member-{at:02d} at step {step}" for at, step in sorted(self.gone.items()))
        return "\n".join(text + ([f"gone, for numbers that are not finite: {gone}"] if gone else []))

    def write(self, path: Path) -> None:
        """Write a CSV: the table, each member's value, and above them what tells the members apart."""
        count = len(self.plan.seeds)
        names = [f"member-{at:02d}" for at in range(count)]
        blank = [""] * (len(COLUMNS) - 1)
        apart = [["seed", *blank, *self.plan.seeds], *([key, *blank, *v] for key, v in self.plan.vary.items())]
        if self.gone:
            apart.append(["gone at step", *blank, *(self.gone.get(at, "") for at in range(count))])
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([[*COLUMNS, *names], *apart])
            for line in self.lines:
                writer.writerow([*map(_exact, _cells(line)), *map(_exact, line.values)])


def summarise(
    plan: Plan,
    histories: Sequence[Sequence[Row]],
    gone: Mapping[int, int],
    points: Tensor | None = None,
    modes: Modes | None = None,
) -> Summary:
    """Summarise the members' last rows, and their ``points`` (members, n, d) by the ``modes`` that they should hit."""
    last = [rows[-1] if rows and at not in gone else {} for at, rows in enumerate(histories)]
    lines = [Line(name, tuple(_number(row.get(name)) for row in last)) for name in METRICS]
    if points is not None and modes is not None:
        found = [(None, None) if at in gone else coverage(own, modes) for at, own in enumerate(points)]
        hit, share = zip(*found, strict=True)
        lines += [Line(f"modes of {len(modes.centres)}", hit), Line("high_quality", share)]
    return Summary(tuple(line for line in lines if line.known), plan, dict(gone))


def shown(rows: Sequence[Row], members: int, rate: float) -> dict[str, str]:
    """What stands beside a progress bar: members times ``rate``, and means of the losses over members' last ``rows``.

    So many are left as there are rows.
    """
    found = {name: [value for row in rows if (value := row[name]) is not None] for name in METRICS[:2]}
    means = {name: f"{statistics.fmean(values):.3f}" for name, values in found.items() if values}
    gone = {} if len(rows) == members else {"gone": str(members - len(rows))}
    return {"members*it/s": f"{members * rate:.1f}", **means, **gone}


def coverage(points: Tensor, modes: Modes) -> tuple[float, float]:
    """How many modes have a point near them, and which share of the points is near one: within NEAR sigma.

    Srivastava et al. 2017 (VEEGAN), section 4; Lin et al. 2018 (PacGAN), section 4.1. Points (n, d) on the CPU.
    """
    distance, nearest = torch.cdist(points.float(), modes.centres).min(1)
    good = distance <= NEAR * modes.sigma
    return float(nearest[good].unique().numel()), float(good.float().mean())


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _cells(line: Line) -> tuple[str | float | None, ...]:
    return line.metric, float(len(line.known)), line.mean, line.std, min(line.known), max(line.known)


def _short(cell: str | float | None) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    return "-" if math.isnan(cell) else f"{cell:.4g}"


def _exact(cell: str | float | None) -> str:
    """As it is read back: an empty cell for nothing and for NaN."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return "" if math.isnan(cell) else repr(int(cell) if cell == int(cell) else cell) if math.isfinite(cell) else "inf"
