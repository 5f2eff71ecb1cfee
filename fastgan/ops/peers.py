"""What the processes of a team compute together: sums over all of them, and draws of which each takes its rows.

A batch is shared out in equal parts, one to a process. Within ``together`` an op that mixes samples (a norm, a mean
that a loss refers to, the spread of a batch) does so over the whole batch: only its vectors travel. Outside, and in a
process that is alone, every function here is what it says for the one part that there is.

Each process goes backward from the mean over its own part. A sum over processes passes back the sum of what arrives at
it in all of them, so that what reaches a sample is the gradient of the sum of all these means: the average over the
processes of a weight's gradients is then the gradient of the mean over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import LostPeersError


@dataclass(frozen=True)
class Peers:
    """The processes that hold the parts of a batch.

    ``group`` is torch.distributed's (None: the default one). ``generator``, in the same state in all of them, draws
    what belongs to the whole batch.
    """

    rank: int
    size: int
    group: Any = None
    generator: torch.Generator | None = None

    @torch.no_grad()
    def add_(self, values: Tensor) -> Tensor:
        """Replace contiguous ``values`` by their sum over all processes. Raises LostPeersError where one is gone."""
        try:
            dist.all_reduce(values, group=self.group)
        except RuntimeError as error:
            raise LostPeersError(error) from error
        return values

    def average_(self, values: Tensor) -> Tensor:
        """Replace contiguous ``values`` by their mean over all processes."""
        return self.add_(values).div_(self.size)


_peers: Peers | None = None  # of the whole process: backward runs on threads of its own


def current() -> Peers | None:
    """With whom ops compute together now; None for nobody."""
    return _peers


@contextmanager
def together(peers: Peers | None) -> Iterator[None]:
    """Context in which ops compute over the parts of all ``peers``, who all have to enter it. None changes nothing."""
    global _peers
    before = _peers
    _peers = peers if peers is not None else before
    try:
        yield
    finally:
        _peers = before


@contextmanager
def alone(really: bool = True) -> Iterator[None]:
    """Context in which ops compute over this process's part alone, as norms of single samples do."""
    global _peers
    before = _peers
    _peers = None if really else before
    try:
        yield
    finally:
        _peers = before


class _Total(Function):
    """The sum over all processes, whose gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return peers.add_(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(grad, ctx.peers), None


def mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes. Differentiable as often as asked."""
    if _peers is None:
        return values
    total: Tensor = _Total.apply(values, _peers)
    return total / _peers.size


def var_mean(values: Tensor, over: Sequence[int], keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Biased variance and mean over dimensions of ``values`` and over all processes, as torch.var_mean has them.

    Parts of one size are merged by Chan, Golub & LeVeque's formula: the mean of the means, and the mean of the
    variances and of the squared distances of the means. Differentiable as often as asked.
    """
    var, centre = torch.var_mean(values, list(over), correction=0, keepdim=keepdim)
    if _peers is None:
        return var, centre
    middle = mean(centre)
    return mean(var + (centre - middle).square()), middle


@torch.no_grad()
def merge_(centre: Tensor, var: Tensor, peers: Peers) -> None:
    """Replace mean and biased variance of each process's part by those of the whole batch."""
    own = centre.clone()
    peers.average_(centre)
    peers.average_(var.add_((own - centre).square_()))


@torch.no_grad()
def averages(*vectors: Tensor) -> Sequence[Tensor]:
    """The mean of each of several vectors of one shape over all processes, by one reduction."""
    return vectors if _peers is None else _peers.average_(torch.stack(vectors)).unbind()


def whole(draw: Callable[[int, torch.Generator | None], Tensor], rows: int) -> Tensor:
    """``rows`` rows of what ``draw(rows, generator)`` draws: alone all of it, else those of this process of a draw for
    the whole batch."""
    if _peers is None:
        return draw(rows, None)
    return draw(rows * _peers.size, _peers.generator)[first(rows) :][:rows]


def seed(device: torch.device | str) -> Tensor:
    """A fresh seed and offset, int64 (2) on the device, for a draw of the whole batch."""
    generator = None if _peers is None else _peers.generator
    return torch.empty(2, dtype=torch.int64, device=device).random_(generator=generator)


def share() -> int:
    """How many times the whole batch is as large as this process's part."""
    return 1 if _peers is None else _peers.size


def first(rows: int) -> int:
    """Which row of the whole batch is the first of this process's ``rows``."""
    return 0 if _peers is None else rows * _peers.rank
