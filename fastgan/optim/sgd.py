"""Gradient descent with momentum, Nesterov's too (Sutskever et al., 2013)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.optimizer_step import Number, Rule
from fastgan.optim.one_launch import OneLaunch


class SGD(OneLaunch, torch.optim.SGD):
    """torch.optim.SGD in one launch, with averages, clipping, guard and shadow: see :class:`OneLaunch`."""

    STATES = ("momentum_buffer", "", "")

    def _rule(self, group: Mapping[str, Any]) -> Rule | None:
        momentum = isinstance(group["momentum"], Tensor) or group["momentum"] != 0  # of a tensor nobody asks the value
        return Rule("sgd", momentum=momentum, nesterov=bool(group["nesterov"]))

    def _numbers(self, group: Mapping[str, Any]) -> tuple[Number, ...]:
        return (group["lr"], group["weight_decay"], 0.0, 0.0, 0.0, group["momentum"], group["dampening"])
