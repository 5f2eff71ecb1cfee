"""The optimiser of a network that has nothing to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastgan import optim


class Idle(optim.Adam):
    """An optimiser of no parameters, whose steps do nothing; its counts are on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._where = device
        super().__init__([{"params": []}], lr=torch.zeros((), device=device))  # a graph keeps no number

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do nothing; return what ``closure`` returns."""
        return None if closure is None else closure()

    def _device(self) -> torch.device:
        return self._where
