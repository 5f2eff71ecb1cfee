"""The best checkpoint of a run by a metric, kept beside the newest ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastgan.errors import UserError
from fastgan.train import checkpoint
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.metrics import Row

if TYPE_CHECKING:
    from fastgan.train.trainer import Trainer

RANKS: dict[str, Callable[[float], float]] = {  # the higher, the better
    "diversity": lambda value: -abs(math.log(value)) if value > 0 else -math.inf,
    "wasserstein": lambda value: -abs(value),
    "loss_g": lambda value: -value,
}

Score = Callable[["Trainer"], float]


class Best:
    """What is kept in ``checkpoints/best``: the checkpoint with the best value of ``metric``, whose manifest has it.

    Asked whenever a checkpoint is written. A metric by name is the mean of the rows since it was last asked: nearest
    to 1 (diversity), nearest to 0 (wasserstein) or lowest (loss_g). A function of the Trainer returns a score of its
    own, the higher, the better. Raises UserError for wasserstein where the objective is no ``critic``'s.
    """

    def __init__(self, metric: str | Score, critic: bool = True) -> None:
        if metric == "wasserstein" and not critic:
            raise UserError("keep_best=wasserstein needs a critic (objective=wasserstein): take diversity or loss_g")
        self.metric = metric
        self._asked = 0  # the step
        self._best: float | None = None

    @property
    def name(self) -> str:
        """What the manifest calls the metric."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "score")

    def value(self, trainer: Trainer) -> float | None:
        """The metric now; None where there is nothing to go by."""
        if not isinstance(self.metric, str):
            return float(self.metric(trainer))
        known = _values(trainer.history, self.metric, self._asked)
        self._asked = trainer.step
        return sum(known) / len(known) if known else None

    def begin(self, folder: Path, step: int) -> None:
        """Go on after ``step`` with what ``folder`` holds; the best one of another metric will be replaced."""
        self._asked, self._best = step, None
        for path in checkpoint.whole(folder / checkpoint.BEST)[-1:]:
            best = checkpoint.load(path).values.get("best", {})
            if best.get("metric") == self.name:
                self._best = float(best["value"])

    def keep(self, folder: Path, content: Checkpoint, value: float | None) -> None:
        """Write ``content`` as the best checkpoint under ``folder``, if it is: where two are as good, the first is."""
        if value is None or not math.isfinite(value):
            return
        if self._best is not None and self._rank(value) <= self._rank(self._best):
            return
        values = {**content.values, "best": {"metric": self.name, "value": value}}
        checkpoint.save(folder / checkpoint.BEST, replace(content, values=values), keep=1)
        self._best = value

    def _rank(self, value: float) -> float:
        return RANKS[self.metric](value) if isinstance(self.metric, str) else value


def _values(rows: Sequence[Row], metric: str, since: int) -> list[float]:
    new = [row.get(metric) for row in rows if int(row["step"] or 0) > since]
    return [value for value in new if value is not None]
