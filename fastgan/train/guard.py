"""What happens to a run that meets NaN or infinity: it stops, skips the updates, or goes back to a good state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import NonFiniteError, UserError
from fastgan.optim.one_launch import OneLaunch
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.dials import Dials
from fastgan.train.metrics import Row
from fastgan.train.step import Players

ROWS = 3  # in a row in which every update of a player was skipped: the run gets nowhere
ROLLBACKS = 5  # of a run, at most
SLOWER = 0.5  # what a rollback multiplies the learning rates by
SIDES = ("generator", "discriminator")


class Guard:
    """The guard of a run, by the configuration's ``on_nan``.

    ``stop``: nothing here. ``skip``: optimisers leave out, whole, each step with a gradient that is not finite, and
    buffers take back what is not. ``rollback``: the state is the Trainer's to put back; this lowers the learning rates
    by ``factor``, which checkpoints keep. ``critic_updates``: of how many of its updates so many steps consist.
    """

    def __init__(self, mode: str, players: Players, dials: Dials, critic_updates: Callable[[int], int]) -> None:
        self.mode, self.factor, self.rollbacks = mode, 1.0, 0
        self._dials, self._updates = dials, (int, critic_updates)  # of each player in the first so many steps
        self._optimizers = [players.generator_optimizer, players.discriminator_optimizer]
        self._told, self._new = [0, 0], [0, 0]
        self._stuck = [0, 0]  # rows in a row in which a player did not move
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._guards = [o for o in self._optimizers if isinstance(o, OneLaunch)]
        if mode == "skip":
            for side, optimizer in zip(SIDES, self._optimizers, strict=True):
                skips(optimizer, side, "on_nan=skip").skip_non_finite = True
            self._buffers = [(b, b.clone()) for network in _networks(players) for b in network.buffers() if _real(b)]

    @property
    def kept(self) -> list[Tensor]:
        """The last finite values of the networks' buffers."""
        return [kept for _, kept in self._buffers]

    @torch.no_grad()
    def mend(self) -> None:
        """Give every buffer that is not finite what it had at the end of the last iteration. On the device."""
        for buffer, kept in self._buffers:
            kept.copy_(torch.where(buffer.isfinite(), buffer, kept))
            buffer.copy_(kept)

    def counters(self) -> list[Tensor]:
        """How many steps each player's optimiser has skipped, on the device; none where steps are not guarded."""
        return [optimizer.skipped for optimizer in self._guards] if self.mode == "skip" else []

    def count(self, row: Row, skipped: list[float]) -> None:
        """Put into ``row`` how many updates were skipped since the last whole one; ``skipped`` are the counters."""
        row["skipped"] = None
        if skipped:
            self._new = [int(number) for number in skipped]
            row["skipped"] = sum(self._new) - sum(self._told) - int(row["balanced"] or 0)

    def judge(self, row: Row, steps: int) -> None:
        """Take note of a whole row of so many steps. Raises NonFiniteError where a player has not moved for a while."""
        if row["skipped"] is None:
            return
        last = int(row["step"] or 0)
        for at, side in enumerate(SIDES):
            skipped, updates = self._new[at] - self._told[at], self._updates[at](last) - self._updates[at](last - steps)
            lost = skipped - (int(row["balanced"] or 0) if side == "discriminator" else 0)
            self._stuck[at] = self._stuck[at] + 1 if lost > 0 and skipped >= updates else 0
            if self._stuck[at] >= ROWS:
                raise NonFiniteError(
                    f"every update of the {side} was skipped in {ROWS} rows up to step {row['step']}, for gradients"
                    " that are not finite: training stopped; lower the learning rates, or set on_nan=rollback"
                )
        self._told = self._new

    def next_rollback(self, error: NonFiniteError) -> tuple[int, float]:
        """Its number, and the factor of the learning rates after it. Raises ``error`` again after the last one."""
        if self.rollbacks >= ROLLBACKS:
            what = str(error).partition(";")[0]  # without the advice to roll back
            raise NonFiniteError(
                f"{what}; rolled back {ROLLBACKS} times already, in vain: lower the learning rates"
            ) from error
        return self.rollbacks + 1, self.factor * SLOWER

    def lower(self, factor: float) -> None:
        """Have the learning rates be ``factor`` times the configuration's; in place where they are on the device."""
        change, self.factor = factor / self.factor, factor
        if change == 1:
            return
        dials = self._dials
        for side, optimizer in zip(SIDES, self._optimizers, strict=True):
            if f"{side}_lr" in dials.names:
                dials.table[dials.names.index(f"{side}_lr"), 1:3] *= change
                dials.set(int(dials.clock))
                continue
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].mul_(change)
                else:
                    group["lr"] *= change

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values."""
        told = {"skipped": list(self._told), "stuck": list(self._stuck)}
        return {"lr_factor": self.factor, "rollbacks": self.rollbacks, **told}

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from there, with networks and optimisers that have their state back."""
        known = [int(counter) for counter in self.counters()] or [0, 0]
        self._told, self._stuck = list(values.get("skipped", known)), list(values.get("stuck", [0, 0]))
        self.rollbacks = int(values.get("rollbacks", 0))
        self.lower(float(values.get("lr_factor", 1.0)))
        for buffer, kept in self._buffers:
            kept.copy_(buffer)


def skips(optimizer: torch.optim.Optimizer, side: str, key: str) -> OneLaunch:
    """The optimiser of a ``side``, if it can skip steps by itself, which ``key`` needs. Raises UserError if not."""
    if not isinstance(optimizer, OneLaunch):
        raise UserError(
            f"{key} needs optimisers that can skip a step on the device, and the {side}'s is"
            f" {type(optimizer).__name__}: take fastgan.optim.Adam, AdamW, RMSprop or SGD"
        )
    return optimizer


def refuse_non_finite(tensors: Iterable[Tensor], step: int) -> None:
    """Raise NonFiniteError unless all of them are finite: a good checkpoint is never replaced by one that is not."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NonFiniteError(
            f"a loss or weight is not finite at step {step}: training stopped without saving it;"
            " lower the learning rates, or set on_nan=rollback"
        )


def copied(content: Checkpoint) -> Checkpoint:
    """A checkpoint in memory that goes its own ways, on the CPU."""
    tensors = {
        file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
        for file, named in content.tensors.items()
    }
    return Checkpoint(tensors, deepcopy(dict(content.values)))


def _networks(players: Players) -> tuple[nn.Module, nn.Module]:
    return players.generator, players.discriminator


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
