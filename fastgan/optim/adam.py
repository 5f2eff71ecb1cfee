"""Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastgan.ops.optimizer_step import Number, Rule
from fastgan.optim.one_launch import OneLaunch


class _Moments(OneLaunch):
    STATES = ("exp_avg", "exp_avg_sq", "")

    def _rule(self, group: Mapping[str, Any]) -> Rule | None:
        decoupled = bool(group["decoupled_weight_decay"])
        return None if group["amsgrad"] else Rule("adam", decoupled=decoupled)

    def _numbers(self, group: Mapping[str, Any]) -> tuple[Number, ...]:
        return (group["lr"], group["weight_decay"], group["eps"], *group["betas"], 0.0, 0.0)


class Adam(_Moments, torch.optim.Adam):
    """torch.optim.Adam in one launch, with averages, clipping, guard and shadow: see :class:`OneLaunch`."""


class AdamW(_Moments, torch.optim.AdamW):
    """torch.optim.AdamW in one launch, with averages, clipping, guard and shadow: see :class:`OneLaunch`."""
