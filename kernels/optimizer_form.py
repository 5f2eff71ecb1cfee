"""What decides the compiled form of an optimiser's step, as plain values: no Triton is needed to say it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rule(NamedTuple):
    """Which optimiser, and what of it decides which states there are."""

    name: str  # adam, rmsprop, sgd
    decoupled: bool = False  # weight decay
    momentum: bool = False
    nesterov: bool = False
    centered: bool = False

    @property
    def states(self) -> tuple[bool, bool, bool]:
        """Which of the three columns of states are in use."""
        if self.name == "adam":
            return True, True, False
        return (True, self.momentum, self.centered) if self.name == "rmsprop" else (self.momentum, False, False)


class Form(NamedTuple):
    """What else decides the compiled form of a step."""

    rule: Rule
    param: torch.dtype
    average: bool = False
    shadow: torch.dtype | None = None
    turned: bool = False  # some shadow's memory order is not its parameter's
    clip: bool = False
    scalars: bool = False  # some number is a scalar on the device
    counts: bool = True  # this launch is the step's last
