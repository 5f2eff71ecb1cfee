"""The rows of a run: begun at a step, finished when their numbers have come from the device, kept and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgan.errors import NonFiniteError
from fastgan.train.files import plainly, sync
from fastgan.train.guard import Guard
from fastgan.train.metrics import Meter, MetricsFile, Reading, Row, finite, waited

if TYPE_CHECKING:
    from tqdm import tqdm

SHOWN = ("loss_d", "loss_g", "d_real", "d_fake", "wasserstein", "penalty")  # beside the progress bar
COUNTED = {"skipped": "", "balanced": "", "memory": " MiB"}  # so too, where there are any
FELT = 0.01  # of the time that steps wait for data: from there on it is shown


class _Pending(NamedTuple):
    """A row whose numbers are on their way."""

    row: Row
    reading: Reading
    rate: float
    whole: bool


class Journal:
    """``history``, and its file in ``out`` where there is one. At most one row is on its way at a time.

    A run may end between two rows: what it has gathered then is shown in a row that is not ``whole``, which the next
    whole one replaces where the run is lengthened: it will hold as many steps as any other. ``readers`` are told of
    each whole row.
    """

    def __init__(self, meter: Meter, guard: Guard, readers: Sequence[Callable[[Row], None]] = ()) -> None:
        self.history: list[Row] = []
        self.out: Path | None = None
        self.told = 0  # the step of the last whole row
        self._meter, self._guard, self._readers = meter, guard, readers
        self._pending: _Pending | None = None

    @property
    def file(self) -> MetricsFile | None:
        """``metrics.csv`` of the run."""
        return MetricsFile(self.out / "metrics.csv") if self.out else None

    def begin(self, bar: tqdm[Any], row: Row, *, rate: float, whole: bool) -> None:
        """Send for the means since the last row, which go into ``row``; steps may go on while they come."""
        self.finish(bar)
        reading = self._meter.reading(*self._guard.counters(), keeps=not whole)
        self._pending = _Pending(row, reading, rate, whole)
        self.finish(bar, waits=False)

    def finish(self, bar: tqdm[Any], *, waits: bool = True) -> None:
        """Keep and write the row that was begun, if its numbers are there or it ``waits`` for them.

        Raises NonFiniteError, after writing it, where a number is not finite or the guard has skipped everything.
        """
        if self._pending is None or not (waits or self._pending.reading.ready):
            return
        (row, reading, rate, whole), self._pending = self._pending, None
        row |= reading.row()
        self._guard.count(row, reading.more)
        self.history.append(row)
        if self.file:
            self.file.append(row)
        if not finite(row):
            raise NonFiniteError(
                f"a loss is not finite at step {row['step']} (loss_d {row['loss_d']}, loss_g {row['loss_g']}):"
                " training stopped; lower the learning rates, or set on_nan=rollback"
            )
        counted = {name: f"{row[name]}{unit}" for name, unit in COUNTED.items() if row.get(name)}
        shown = {name: f"{row[name]:.3f}" for name in SHOWN if row[name] is not None}
        if (share := waited(row, self.history[-2] if len(self.history) > 1 else None)) >= FELT:
            counted["stalled"] = f"{share:.0%}"
        bar.set_postfix({"img/s": f"{rate:.0f}", **shown, **counted}, refresh=False)
        if whole:
            steps, self.told = int(row["step"] or 0) - self.told, int(row["step"] or 0)
            self._guard.judge(row, steps)
            for read in self._readers:
                read(row)

    def proceed(self) -> None:
        """Drop a last row that is not whole: the steps that it shows will be in the next one."""
        if len(self.whole_rows()) < len(self.history):
            self._keep(self.told)

    def whole_rows(self) -> list[Row]:
        """The rows that no later one will replace."""
        return [row for row in self.history if int(row["step"] or 0) <= self.told]

    def sync(self) -> None:
        """Have what was written so far on the disk before a checkpoint says that it is."""
        for path in (self.out / "metrics.csv", self.out / "alarms.csv") if self.out else ():
            with plainly(path):
                sync(path)

    def rewind(self, step: int, told: int) -> None:
        """Drop the rows beyond ``step``, which a resumed run will write again; the last whole one was at ``told``."""
        self._pending, self.told = None, told
        self._keep(step)

    def _keep(self, step: int) -> None:
        if self.file:
            self.history = self.file.rewind(step)
        else:
            self.history = [row for row in self.history if int(row["step"] or 0) <= step]
