"""What the iterations of other methods than the adversarial one have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.presets import Config
from fastgan.train.step import Pattern, Players, Step

Ask = Callable[[str, Callable[[Tensor], Tensor], Tensor], Tensor]


class Contrast(Step):
    """An iteration of two networks, called generator and discriminator, that are no adversaries by an objective."""

    @classmethod
    def prepare(cls, config: Config, players: Players, samples: Dataset) -> None:
        """Make the networks ready for the data, or raise UserError where they do not fit."""

    def fit_together(self, ask: Ask, z: Tensor, sample_shape: tuple[int, ...]) -> None:
        """Send what they take through both networks by ``ask(side, network, input)``. Raises UserError on a misfit."""
        raise NotImplementedError

    def _fresh(self, pattern: Pattern) -> None:
        raise NotImplementedError


def expect(side: str, made: Tensor, given: Tensor, wanted: tuple[int, ...], what: str) -> None:
    """Raise UserError unless a network has made the shape that is wanted of it."""
    if made.shape != wanted:
        raise UserError(
            f"the {side} makes {tuple(made.shape)} of {tuple(given.shape)} where {what} of shape {wanted} are wanted:"
            " change its last layer"
        )


def owned(network: Any, name: str, default: float) -> float:
    """A number that a network of ours brings, and one of the user's may."""
    return float(getattr(network, name, default))
