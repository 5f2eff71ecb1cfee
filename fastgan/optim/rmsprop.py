"""RMSprop (Hinton, lecture 6e; centred: Graves, 2013)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.optimizer_step import Number, Rule
from fastgan.optim.one_launch import OneLaunch


class RMSprop(OneLaunch, torch.optim.RMSprop):
    """torch.optim.RMSprop in one launch, with averages, clipping, guard and shadow: see :class:`OneLaunch`."""

    STATES = ("square_avg", "momentum_buffer", "grad_avg")

    def _rule(self, group: Mapping[str, Any]) -> Rule | None:
        momentum = isinstance(group["momentum"], Tensor) or group["momentum"] > 0  # of a tensor nobody asks the value
        return Rule("rmsprop", momentum=momentum, centered=bool(group["centered"]))

    def _numbers(self, group: Mapping[str, Any]) -> tuple[Number, ...]:
        return (group["lr"], group["weight_decay"], group["eps"], 0.0, group["alpha"], group["momentum"], 0.0)
