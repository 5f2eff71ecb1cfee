"""Metrics: means gathered on the device between two readings, and the CSV file that they are written to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastgan import ops
from fastgan.errors import UserError
from fastgan.ops import peers
from fastgan.ops.peers import Peers
from fastgan.train.dials import Dials
from fastgan.train.files import append, plainly, replacing

FIRST = (  # the columns that every version has written
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
SECOND = (*FIRST, "memory", "balanced", "diversity", "gradient_g")
COLUMNS = (*SECOND, "stalled")
OBSERVED = ("loss_d", "loss_g", "d_real", "d_fake", "penalty", "diversity", "gradient_g", "balanced")
WHOLE = {"step", "images", "skipped", "memory", "balanced"}
HEADER = ",".join(COLUMNS)
HEADERS = {",".join(columns): columns for columns in (FIRST, SECOND, COLUMNS)}

Row = dict[str, float | int | None]


class Meter:
    """Running sums on the device, and the clock, which ends each iteration. Neither costs a synchronisation.

    ``critic``: the mean scores are those of a critic's outputs, whose distance is shown, not of probabilities.
    ``finite``: what is no finite number is left out of the means; else it comes through. Each of several ``team``
    processes sums up what it sees of its own part of the batches; readings are of all.
    """

    def __init__(self, dials: Dials, critic: bool = False, finite: bool = False, team: Peers | None = None) -> None:
        self.dials, self.critic, self.finite, self._team = dials, critic, finite, team
        self.sums = torch.zeros(len(OBSERVED), device=dials.clock.device)  # in the order of OBSERVED
        self.counts = torch.zeros(len(OBSERVED), dtype=torch.int64, device=dials.clock.device)
        self._nothing = torch.zeros((), device=dials.clock.device)

    def observe(self, *, ends: bool, **values: Tensor) -> None:
        """Add one observation of each named quantity; the iteration ``ends`` with it, or goes on. One launch."""
        dials = self.dials
        observed = [values.get(name) for name in OBSERVED]
        if self.finite:
            observed = self._leave_out(observed)
        table = dials.table if dials.names else None
        ops.tick(dials.clock, table, dials.values, self.sums, self.counts, observed, advance=ends)

    def _leave_out(self, observed: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Observations with 0 for what is not finite, whose count is taken back."""
        nothing = self._nothing
        seen = torch.stack([nothing if value is None else value.detach().float().reshape(()) for value in observed])
        seen = peers.mean(seen)  # what one process cannot count, none does
        known = seen.isfinite()
        self.counts.sub_((~known).long())
        kept = torch.where(known, seen, nothing).unbind()
        return [None if value is None else own for value, own in zip(observed, kept, strict=True)]

    def reading(self, *more: Tensor, keeps: bool = False) -> Reading:
        """Begin to read: means since the last reading, and ``more`` scalars, are on their way.

        The means start anew, unless the meter ``keeps`` what it has.
        """
        reading = Reading(self.whole(), self.counts, more, self.critic)
        if not keeps:
            self.sums.zero_()
            self.counts.zero_()
        return reading

    def whole(self) -> Tensor:
        """The sums over all processes' parts, as means over the processes, which all ask."""
        return self.sums if self._team is None else self._team.average_(self.sums.clone())

    def read(self) -> Row:
        """The mean of each quantity since the last reading; None where nothing was added. Waits for the device."""
        return self.reading().row()


class Reading:
    """Numbers on their way from the device to the host, by a copy that nothing waits for."""

    def __init__(self, sums: Tensor, counts: Tensor, more: Sequence[Tensor], critic: bool) -> None:
        self._critic = critic
        self._parts = [_sent(tensor) for tensor in (sums, counts, *more)]
        # of the tensors' own device, which need not be the current one
        self._event = torch.cuda.current_stream(sums.device).record_event() if sums.is_cuda else None

    @property
    def ready(self) -> bool:
        """Whether they have arrived."""
        return self._event is None or self._event.query()

    @property
    def more(self) -> list[float]:
        """The further scalars. Waits for them."""
        self._wait()
        return [part.item() for part in self._parts[2:]]

    def row(self) -> Row:
        """The means, and how many updates were balanced, by the names of the columns. Waits for them."""
        self._wait()
        sums, counts = (part.tolist() for part in self._parts[:2])
        row: Row = {name: total / n if n else None for name, total, n in zip(OBSERVED, sums, counts, strict=True)}
        row["balanced"] = round(sums[-1]) if counts[-1] else None
        row["wasserstein"] = None
        if self._critic and row["d_real"] is not None and row["d_fake"] is not None:
            row["wasserstein"] = row["d_real"] - row["d_fake"]
        if self._critic:
            row["d_real"] = row["d_fake"] = None
        return row

    def _wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


def _sent(tensor: Tensor) -> Tensor:
    """A copy on the host: of a tensor on a GPU into pinned memory, where it may still be on its way."""
    if not tensor.is_cuda:
        return tensor.clone()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def finite(row: Row) -> bool:
    """Whether every metric of the row that applies is a finite number."""
    return all(value is None or math.isfinite(value) for value in row.values())


def waited(row: Row, before: Row | None) -> float:
    """The share of its time that steps up to ``row``, from the whole row ``before`` it, have waited for data."""
    elapsed = float(row["seconds"] or 0) - float((before or {}).get("seconds") or 0)
    return min(1.0, float(row.get("stalled") or 0) / elapsed) if elapsed > 0 else 0.0


class MetricsFile:
    """``metrics.csv`` of a run: a row per reading, empty cells where a metric does not apply."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Row) -> None:
        """Write one row; the header comes first in a new file."""
        append(self.path, _line(row), head=f"{HEADER}\n")

    def read(self, last_step: int) -> list[Row]:
        """The rows up to ``last_step``; what a crash cut short, and a step that is there already, is left out.

        Raises UserError on a foreign file.
        """
        if not self.path.exists():
            return []
        with plainly(self.path, "read"):
            header, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        columns = HEADERS.get(header)
        if columns is None and (lines or not HEADER.startswith(header)):
            raise UserError(f"{self.path} is not a metrics file of fastgan: move it away, then resume")
        rows: list[Row] = []
        for line in lines[:-1]:  # what no line break ends was cut short
            row = _parse(line.split(","), columns or COLUMNS)
            if row and (rows[-1]["step"] or 0 if rows else 0) < (row["step"] or 0) <= last_step:
                rows.append(row)
        return rows

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


def _parse(line: Sequence[str], columns: Sequence[str]) -> Row | None:
    if len(line) != len(columns):
        return None
    try:
        return {
            column: None if cell == "" else int(cell) if column in WHOLE else float(cell)
            for column, cell in zip(columns, line, strict=True)
        }
    except ValueError:
        return None
