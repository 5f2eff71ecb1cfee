"""What a run says of itself: how it runs, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastgan.errors import require
from fastgan.ops import backend
from fastgan.presets import Config
from fastgan.train import build
from fastgan.train.feed import Feeder
from fastgan.train.metrics import Row, waited
from fastgan.train.one_launch import Launches, Way
from fastgan.train.replays import Replays

ROWS, MUCH = 2, 0.1  # in so many rows in a row, so much of the time was spent waiting: worth a word

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, done: int, shown: bool) -> tqdm[Any]:
    """A bar on standard error, iterations a second beside it; in a notebook, one of its own."""
    seen = sys.stderr is not None  # it is None where the process was started with stderr closed
    pause = 0.2 if seen and sys.stderr.isatty() else 10.0  # a log file wants few lines
    module = require("tqdm.auto", why="the progress bar")
    bar: tqdm[Any] = module.tqdm(
        total=total,
        initial=min(done, total),
        disable=not (shown and seen),
        dynamic_ncols=True,
        mininterval=pause,
        unit="it",
    )
    return bar


def describe(device: torch.device, config: Config, runner: Way, feeder: Feeder | None = None) -> str:
    """The device, its precision, the backend that the fused ops take there and why, how steps run and are fed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    number = "bf16" if build.bf16(config, device) else "fp32"
    ways: dict[str, list[str]] = {}
    for choice in backend.explain(device):
        ways.setdefault(f"{choice.backend} ({choice.why})", []).append(choice.op)
    ops = "; ".join(f"{', '.join(ops) if len(ways) > 1 else 'fused ops'}: {way}" for way, ops in ways.items())
    feed = f"; data: read ahead by {feeder.readers} threads" if feeder else ""
    return f"{name} in {number}; {ops}; steps: {_how(device, config, runner)}{feed}"


def _how(device: torch.device, config: Config, runner: Way) -> str:
    """How steps run, and why so where they are not replayed."""
    if isinstance(runner, Launches):
        count = f"{config.unroll} in one launch" if config.unroll > 1 else "one launch"
        return f"{count}; those that are watched or penalised: {_how(device, config, runner.otherwise)}"
    if isinstance(runner, Replays):
        return f"{config.unroll} in one CUDA graph replay" if config.unroll > 1 else "one CUDA graph replay"
    if device.type != "cuda":
        return "eagerly, because a CUDA graph needs a GPU"
    return "eagerly, because graph=false"


class Advice:
    """What to do where steps wait for data. It is said once, where ``aloud`` says that the run may speak."""

    def __init__(self, feeder: Feeder | None, aloud: Callable[[], bool]) -> None:
        self._feeder, self._aloud = feeder, aloud
        self._before: Row | None = None
        self._rows, self._said = 0, False

    def see(self, row: Row) -> None:
        """Judge a whole row."""
        share, self._before = waited(row, self._before), row
        self._rows = self._rows + 1 if share > MUCH else 0
        if self._feeder is None or self._said or self._rows < ROWS or not self._aloud() or sys.stderr is None:
            return
        self._said = True
        where = "put the data on a faster disk" if self._feeder.data.file else "leave the processors to the readers"
        line = (
            f"fastgan: step {row['step']}: steps waited {share:.0%} of the time for data: {where}, take smaller images,"
            f" or more than {self._feeder.readers} readers (readers={2 * self._feeder.readers})"
        )
        require("tqdm.auto", why="the progress bar").tqdm.write(line, file=sys.stderr)
