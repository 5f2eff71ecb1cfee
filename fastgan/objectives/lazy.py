"""Lazy regularisation: a penalty every n-th step, n times as heavy. Karras et al. 2020 (StyleGAN2), appendix B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastgan.errors import UserError
from fastgan.objectives.penalties import Penalty


@dataclass(frozen=True)
class Lazy:
    """A penalty that is due every ``every``-th step, first at step 0, and counts ``every`` times then.

    It keeps no counter: the step is the caller's, so a run that is resumed goes on in time. Stepping eagerly::

        penalty = Lazy(r1, every=16)
        now = penalty(step, critic, real)  # None where it is not due
        loss = loss if now is None else loss + gamma * now.value

    A step that is captured in a graph cannot ask each time: capture it twice, with ``penalty.heavy(critic, real)`` and
    without, and replay the first where ``penalty.due(step)``.

    Args:
        penalty: any that returns a :class:`Penalty` or a scalar.
        every: steps from one to the next, 1 or more.

    Raises:
        UserError: for fewer than 1 step.
    """

    penalty: Callable[..., Any]
    every: int = 16

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"a lazy penalty is due every 1 or more steps, not every {self.every}")

    def __call__(self, step: int, *args: object, **keys: object) -> Any:
        """Return the penalty of these arguments, ``every`` times as heavy, where it is due at this step; else None."""
        return self.heavy(*args, **keys) if self.due(step) else None

    def due(self, step: int) -> bool:
        """Whether a step has the penalty."""
        return step % self.every == 0

    def heavy(self, *args: object, **keys: object) -> Any:
        """Return the penalty of these arguments, ``every`` times as heavy; the norm beside it stays as it is."""
        found = self.penalty(*args, **keys)
        return found._replace(value=found.value * self.every) if isinstance(found, Penalty) else found * self.every

    def adam(self, lr: float, betas: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        """Return what StyleGAN2 gives Adam for it: lr c and betas ** c, c = every / (every + 1).

        That is for a penalty with an optimiser's step of its own, beside one for each step's loss: as if there were
        ``every`` steps of both together.
        """
        c = self.every / (self.every + 1)
        return lr * c, (betas[0] ** c, betas[1] ** c)
