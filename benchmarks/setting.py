"""One run of a suite: where it runs, how much effort it may spend, and the ceilings that it has measured."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass, field

import torch

from fastgan.benchmarks.record import Ceilings
from fastgan.errors import UserError


@dataclass(frozen=True)
class Effort:
    """How long to measure: ``repeats`` samples of about ``sample_us``, at most ``seconds`` for a clock of a race."""

    repeats: int = 20
    sample_us: float = 1000.0
    seconds: float = 10.0
    least: int = 3  # samples that are taken even when the time is over


SMOKE = Effort(repeats=3, sample_us=100.0, seconds=1.0)


@dataclass
class Setting:
    """What the tasks of one run share."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    smoke: bool = False
    budget: float | None = None  # seconds
    seed: int = 0
    options: Namespace = field(default_factory=Namespace)  # the suite's own options
    ceilings: Ceilings = field(default_factory=Ceilings)
    started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether the work is done by a CUDA device."""
        return self.device.type == "cuda"

    @property
    def effort(self) -> Effort:
        """The effort that one race may take now."""
        if self.smoke:
            return SMOKE
        return Effort(seconds=min(Effort.seconds, self.remaining()))

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def remaining(self) -> float:
        """Seconds left of the budget; infinite without one."""
        return float("inf") if self.budget is None else max(0.0, self.budget - self.elapsed())

    def generator(self) -> torch.Generator:
        """Return a fresh generator of random inputs, the same for every task of the run."""
        return torch.Generator(self.device).manual_seed(self.seed)


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device that exists."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device; use --device cpu, or ask `fastgan doctor` why")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
