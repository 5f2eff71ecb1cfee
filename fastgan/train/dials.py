"""What moves while a run goes on, as numbers on the device: each step reads them, and no host sets them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops.tick import KINDS
from fastgan.presets import SCHEDULED, Config


class Dials:
    """The count of iterations, and the quantities that a configuration schedules, both on ``device``.

    ``clock``, int64, is the number of iterations done; ``table`` and ``values`` are the schedules and what they say at
    that count, as ``fastgan.ops.tick`` takes them. The first value of a schedule is that of the quantity's own key.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.names = tuple(config.schedules)
        rows = [
            (KINDS[schedule.shape], SCHEDULED[name](config), schedule.to, schedule.begin, schedule.steps)
            for name, schedule in config.schedules.items()
        ]
        self._config = config
        self.clock = torch.zeros((), dtype=torch.int64, device=device)
        self.table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 5)
        self.values = ops.scheduled(self.table, self.clock)

    def __getitem__(self, name: str) -> float | Tensor:
        """What moves as a scalar tensor that moves in place; what does not as a number."""
        return self.values[self.names.index(name)] if name in self.names else SCHEDULED[name](self._config)

    def set(self, step: int) -> None:
        """Put the clock on ``step``, and every dial where it stands then; in place."""
        self.clock.fill_(step)
        self.values.copy_(ops.scheduled(self.table, self.clock))
