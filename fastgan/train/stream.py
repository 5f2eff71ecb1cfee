"""The global random stream (dropout and the like) as a run sees it: its own, kept apart from the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Stream:
    """While ``running``, torch's global generators of the CPU and of ``device`` continue this run's stream.

    Afterwards they are what the caller had. Where the device is the CPU, the GPUs' generators are left alone.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._running = False
        with torch.random.fork_rng(devices=self._gpus):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU of the caller
            for gpu in self._gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(seed)
            self._states = self._current()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which the global generators are this run's."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._states["cpu"])
            for gpu in self._gpus:
                torch.cuda.set_rng_state(self._states["cuda"], gpu)
            self._running = True
            try:
                yield
            finally:
                self._states, self._running = self._current(), False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context whose draws leave the stream where it was: how often pictures are drawn changes no run."""
        with torch.random.fork_rng(devices=self._gpus):
            yield

    def state(self) -> dict[str, Tensor]:
        """The state of the generators by kind of device: ``cpu`` and, on a GPU, ``cuda``."""
        return self._current() if self._running else self._states

    def load(self, states: Mapping[str, Tensor]) -> None:
        """Continue from an earlier ``state``. A kind of device that it does not know goes on with its seed."""
        self._states = {kind: states.get(kind, own) for kind, own in self._states.items()}

    def _current(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        for gpu in self._gpus:
            states["cuda"] = torch.cuda.get_rng_state(gpu)
        return states
