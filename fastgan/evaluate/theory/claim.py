"""A claim of the theory, and the numbers that were measured to check it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Relation = Literal["equals", "at_least", "at_most"]


@dataclass(frozen=True)
class Measured:
    """One number beside what the theory says of it.

    Args:
        what: the number in words.
        value: what was measured.
        expected: what the theory says; None for a number that is only shown, and holds where it is finite.
        tolerance: how far it may lie on the wrong side, in the value's own unit; None is 0.
        relation: how value and expected are compared.
    """

    what: str
    value: float
    expected: float | None = None
    tolerance: float | None = None
    relation: Relation = "equals"

    @property
    def holds(self) -> bool:
        """Whether the number is what the theory says. NaN never is."""
        if self.expected is None:
            return math.isfinite(self.value)
        slack = self.tolerance or 0.0
        match self.relation:
            case "equals":
                return self.value == self.expected or abs(self.value - self.expected) <= slack
            case "at_least":
                return self.value >= self.expected - slack
            case "at_most":
                return self.value <= self.expected + slack


@dataclass(frozen=True)
class Claim:
    """A statement of the theory, checked.

    Args:
        name: kebab-case, the name of the function that checks it.
        statement: one or two lines of prose.
        source: paper, section or equation.
        measured: the numbers; the claim holds where all of them do.
        draw: fills ``panels`` matplotlib axes with the picture; None where there is nothing to see.
        panels: how many axes ``draw`` asks for.
    """

    name: str
    statement: str
    source: str
    measured: tuple[Measured, ...]
    draw: Callable[[Sequence[Any]], None] | None = None
    panels: int = 1

    @property
    def holds(self) -> bool:
        """Whether every number is what the theory says."""
        return all(number.holds for number in self.measured)


Check = Callable[..., Claim]  # a function (seed: int = 0) -> Claim


def name_of(check: Check) -> str:
    """The name of the claim that a function checks: its own, in kebab-case."""
    return check.__name__.replace("_", "-")
