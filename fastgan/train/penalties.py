"""The penalty that a configuration names, as the step adds it to the discriminator's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan import objectives
from fastgan.objectives import Lazy
from fastgan.presets import Penalty


def _r1_r2(critic: Callable[..., Tensor], real: Tensor, fake: Tensor) -> objectives.Penalty:
    one, two = objectives.r1(critic, real), objectives.r2(critic, fake)
    return objectives.Penalty(one.value + two.value, (one.norm + two.norm) / 2)


PENALTIES: dict[str, Callable[..., objectives.Penalty]] = {
    "gradient_penalty": objectives.gradient_penalty,
    "zero_centered": objectives.zero_centered,
    "r1": lambda critic, real, fake: objectives.r1(critic, real),
    "r2": lambda critic, real, fake: objectives.r2(critic, fake),
    "r1_r2": _r1_r2,
    "dragan": lambda critic, real, fake: objectives.dragan(critic, real),
}


@dataclass(frozen=True)
class Weighted:
    """A penalty with its weight, a scalar on the device, which may move there."""

    lazy: Lazy
    weight: Tensor

    def __call__(self, critic: Callable[..., Tensor], real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bare value at an update that is due, and what backward begins from there: its weight."""
        value = self.lazy.penalty(critic, real, fake).value
        return value, self.weight if self.lazy.every == 1 else self.weight * self.lazy.every


def weighted(options: Penalty, weight: float | Tensor, device: torch.device) -> Weighted | None:
    """Return the penalty that a configuration asks for, None for ``none`` and for a weight of 0 that stays 0."""
    if options.name == "none" or (not isinstance(weight, Tensor) and not weight):
        return None
    scalar = torch.as_tensor(weight, dtype=torch.float32, device=device)
    return Weighted(Lazy(PENALTIES[options.name], options.every), scalar)
