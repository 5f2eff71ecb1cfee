"""Iterations in one launch: whether a training takes it, why or why not, and what then runs its iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.ops import mlp_step_launch
from fastgan.ops.backend import current_backend
from fastgan.ops.mlp_step import Program
from fastgan.ops.mlp_step_measured import faster
from fastgan.presets import Config
from fastgan.train import mlp_step
from fastgan.train.replays import Eagerly, Replays
from fastgan.train.step import Pattern, Step

HORIZON = 64  # iterations of which one has to be the table's
Training = tuple[Step, Config, Dataset]  # a member


class Choice(NamedTuple):
    """Whether iterations go in one launch, and why or why not."""

    taken: bool
    why: str


class Launches:
    """Runs iterations by launches of a phase table: consecutive ones by one launch, and those that no table has
    (penalties, watched ones) by ``otherwise``, from the same state.

    Args:
        make: writes the table and returns what launches it; called when it is first needed.
        otherwise: runs all other iterations.
    """

    def __init__(self, make: Callable[[], Callable[[int], None]], otherwise: Replays | Eagerly) -> None:
        self._make, self.otherwise = make, otherwise
        self._launch: Callable[[int], None] | None = None

    def __call__(self, patterns: tuple[Pattern, ...]) -> None:
        """Perform one iteration for each pattern."""
        for taken, alike in groupby(patterns, mlp_step.takes):
            if not taken:
                self.otherwise(tuple(alike))
                continue
            self._launch = self._launch or self._make()
            self._launch(len(tuple(alike)))


Way = Launches | Replays | Eagerly  # of running iterations


def choose(members: Sequence[Training], device: torch.device, *, apart: bool = False) -> Choice:
    """Return whether trainings go in one launch, by the configuration's ``one_launch``; cheap where it cannot be.

    ``auto`` takes it under the backend ``cuda``, or where it was measured to be the faster way.

    Args:
        members: one training, or those of an ensemble.
        device: theirs.
        apart: one to a block.

    Raises:
        UserError: where ``always`` asks for what cannot be, with the reason.
    """
    config = members[0][1]
    if config.one_launch == "never":
        return Choice(False, "one_launch=never")
    why = _refusal(members, device)
    if config.one_launch == "always":
        if why is not None:
            raise UserError(f"one_launch=always: {why}; set one_launch=auto")
        return Choice(True, "one_launch=always")
    if why is not None:
        return Choice(False, why)
    if current_backend() == "cuda":
        return Choice(True, "the backend 'cuda' was asked for")
    return Choice(*faster(device, mlp_step.size(members[0][0], config, len(members) if apart else 0)))


def single(step: Step, config: Config, data: Dataset, otherwise: Replays | Eagerly) -> Launches:
    """What runs a training on the whole grid."""
    return Launches(lambda: mlp_step_launch.Launch(_program(step, config, data)), otherwise)


def one_to_a_block(members: Sequence[Training], otherwise: Replays | Eagerly) -> Launches:
    """What runs an ensemble's members side by side, a block to each."""
    return Launches(lambda: mlp_step_launch.Members([_program(*member) for member in members]), otherwise)


def _refusal(members: Sequence[Training], device: torch.device) -> str | None:
    """Why these cannot go in one launch; None where they can."""
    device_lacks = mlp_step_launch.refusal(device)
    if device_lacks is not None and device.type != "cuda":
        return device_lacks
    for step, config, data in members:
        if (why := mlp_step.applies(step, config, data)) is not None:
            return why
        if not step.bf16:
            return "the kernel computes in bf16, and this run in fp32: set precision=bf16"
        if not any(mlp_step.takes(step.pattern(at)) for at in range(HORIZON)):
            return "each iteration has a penalty or is watched: set penalty.every or log_every above 1"
    return device_lacks


def _program(step: Step, config: Config, data: Dataset) -> Program:
    made = mlp_step.program(step, config, data)
    why = mlp_step_launch.unfit(made)
    if why is not None:
        raise UserError(f"one launch: {why}, or set one_launch=never")
    return made
