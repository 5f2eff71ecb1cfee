"""The rows of a run: begun at a step, finished when their numbers have come from the device, kept and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgan.errors import NonFiniteError
from fastgan.train.metrics import Meter, MetricsFile, Reading, Row, finite

if TYPE_CHECKING:
    from tqdm import tqdm

SHOWN = ("loss_d", "loss_g", "d_real", "d_fake", "wasserstein", "penalty")  # beside the progress bar


class Journal:
    """``history``, and its file in ``out`` where there is one. At most one row is on its way at a time."""

    def __init__(self, meter: Meter) -> None:
        self.history: list[Row] = []
        self.out: Path | None = None
        self._meter = meter
        self._pending: tuple[Row, Reading, float] | None = None

    @property
    def file(self) -> MetricsFile | None:
        """``metrics.csv`` of the run."""
        return MetricsFile(self.out / "metrics.csv") if self.out else None

    def begin(self, bar: tqdm[Any], *, step: int, images: int, seconds: float, rate: float) -> None:
        """Send for the means since the last row; steps may go on while they come."""
        self.finish(bar)
        row: Row = {"step": step, "images": images, "seconds": round(seconds, 3)}
        self._pending = row, self._meter.reading(), rate
        self.finish(bar, waits=False)

    def finish(self, bar: tqdm[Any], *, waits: bool = True) -> None:
        """Keep and write the row that was begun, if its numbers are there or it ``waits`` for them.

        Raises NonFiniteError, after writing it, where a number is not finite.
        """
        if self._pending is None or not (waits or self._pending[1].ready):
            return
        (row, reading, rate), self._pending = self._pending, None
        row |= reading.row()
        self.history.append(row)
        if self.file:
            self.file.append(row)
        if not finite(row):
            raise NonFiniteError(
                f"a loss is not finite at step {row['step']} (loss_d {row['loss_d']}, loss_g {row['loss_g']}):"
                " training stopped; lower the learning rate, or resume from the last checkpoint"
            )
        shown = {name: f"{row[name]:.3f}" for name in SHOWN if row[name] is not None}
        bar.set_postfix({"img/s": f"{rate:.0f}", **shown}, refresh=False)

    def rewind(self, step: int) -> None:
        """Drop the rows beyond ``step``, which a resumed run will write again."""
        if self.file:
            self.history = self.file.rewind(step)
