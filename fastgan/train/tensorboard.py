"""A run's metrics and pictures for TensorBoard."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from fastgan.errors import require
from fastgan.train.metrics import Row

FOLDER = "tensorboard"


class Board:
    """Writes to ``tensorboard/`` in a run's folder. Raises UserError where the package is missing."""

    def __init__(self) -> None:
        require("tensorboard", extra="tensorboard", why="tensorboard=true")
        self._writer: Any = None

    def begin(self, out: Path, step: int) -> None:
        """Go on in the run's folder after ``step``: what stands there of later steps is void."""
        self.end()
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(out / FOLDER), purge_step=step + 1)

    def row(self, row: Row) -> None:
        """Write each metric that the row has."""
        if self._writer is None:
            return
        for name, value in row.items():
            if value is not None and name not in ("step", "seconds"):
                self._writer.add_scalar(name, value, row["step"])

    def picture(self, path: Path, step: int) -> None:
        """Write a picture that was drawn."""
        if self._writer is not None:
            picture = importlib.import_module("PIL.Image").open(path).convert("RGB")
            self._writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def end(self) -> None:
        """Have everything on the disk, and the file closed."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
