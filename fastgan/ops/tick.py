"""tick: the end of an iteration in one launch. The clock and schedules move on, monitors are summed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastgan.errors import UserError
from fastgan.ops.backend import by_reference, register
from fastgan.ops.registration import traced

OP = register("tick")
MOST = 16  # scalars that are observed at once
KINDS = {"constant": 0, "linear": 1, "cosine": 2, "exponential": 3}  # as kernels/tick.py numbers them
_HOST = torch.device("cpu")
OBSERVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tick(
    clock: Tensor,
    table: Tensor | None,
    values: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    observed: Sequence[Tensor | None],
    *,
    advance: bool = True,
) -> None:
    """End an iteration in place: ``sums += observed``, ``clock += 1`` and ``values = scheduled(table, clock)``.

    Nothing is read on the host, so that it may be captured in a CUDA graph. There are no gradients, and none is needed:
    what is observed may require one. Where nothing moves, a table of None spares the reference its arithmetic.

    Args:
        clock: int64 (), iterations done.
        table: float64 (S, 5), a schedule a row, as :func:`scheduled` reads it. None: values stay as they are.
        values: float32 (S), or None with the table.
        sums: float32 (K), K at most 16.
        counts: int64 (K): how many were summed.
        observed: for each k one element of shape () or (1), float32, bfloat16 or float16, added in float32, NaN and
            infinity included; or None, where sum and count stay. Of an element of ``values`` the old one counts.
        advance: False: sums and counts alone; clock and values stay.

    Raises:
        UserError (a ValueError): for more than 16 observed and for sizes that do not agree.
    """
    _agree(table, values, sums, counts, observed)
    if by_reference(OP, sums) or traced(clock, *observed) or not _fits(clock, table, values, sums, counts, observed):
        with torch.no_grad():
            _observe(sums, counts, observed)
            if advance:
                clock.add_(1)
                if table is not None and values is not None and len(table):
                    values.copy_(scheduled(table, clock))
        return
    from fastgan.kernels import tick as kernels

    apart = tuple([None if value is None else value.detach() for value in observed])  # one that comes twice is two
    kernels.tick(clock, table, values, sums, counts, apart, advance=advance)
    increment_version([t for t in (clock, values, sums, counts) if t is not None and not t.is_inference()])


def scheduled(table: Tensor, clock: Tensor) -> Tensor:
    """Return what schedules are at a clock: float32 (S), formed in float64 and rounded once.

    ``first`` up to ``begin``, ``last`` from ``begin + length`` on, both exactly, and with p = (clock - begin) / length
    between them: linear ``first + (last - first) p``; cosine ``last + (first - last) (1 + cos(pi p)) / 2``; exponential
    ``first (last / first)^p``, both above 0. ``constant`` is ``first`` for ever. A length of 0 is a jump at ``begin``.

    Args:
        table: float64 (S, 5), rows of (kind, first, last, begin, length), a kind by its number in :data:`KINDS`.
        clock: int64 (), on the same device.
    """
    if table.device != _HOST or traced(table, clock):
        return _formula(table.unbind(1), clock, torch).float()
    with np.errstate(all="ignore"):  # in memory of the host NumPy's arithmetic is a quarter of PyTorch's calls
        return torch.from_numpy(_formula(table.numpy().T, clock.numpy(), np).astype(np.float32))


def _formula(columns: Any, clock: Any, library: Any) -> Any:
    """Return schedules at a clock, float64 (S), by ``torch`` or by ``numpy``."""
    kind, first, last, begin, length = columns
    age = clock - begin
    p = age / length
    rise = last - first
    cosine = (
        last - rise * library.cos(math.pi / 2 * p) ** 2
    )  # (1 + cos 2a) / 2 is cos^2 a, which keeps its small values
    bent = library.where(kind == KINDS["cosine"], cosine, first * (last / first) ** p)
    between = library.where(kind == KINDS["linear"], first + rise * p, bent)
    value = library.where(age >= length, last, library.where(age > 0, between, first))
    return library.where(kind == KINDS["constant"], first, value)


def _agree(
    table: Tensor | None, values: Tensor | None, sums: Tensor, counts: Tensor, observed: Sequence[Tensor | None]
) -> None:
    """Refuse sizes that do not go together: the kernel would write beyond the end."""
    K = len(observed)
    if K > MOST:
        raise UserError(f"tick observes at most {MOST} scalars, not {K}: tick twice, the first time with advance=False")
    if sums.shape != (K,) or counts.shape != (K,):
        raise UserError(f"{K} observed need sums and counts of shape ({K},), not {_shape(sums)} and {_shape(counts)}")
    if table is not None and (values is None or table.shape != (*values.shape, 5) or values.dim() != 1):
        have = "none" if values is None else str(_shape(values))
        raise UserError(f"schedules are a table of shape (S, 5) with values (S,), not {_shape(table)} with {have}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _observe(sums: Tensor, counts: Tensor, observed: Sequence[Tensor | None]) -> None:
    """Add what is there in plain PyTorch, in few calls: they run in every iteration."""
    there = tuple([k for k, value in enumerate(observed) if value is not None])
    if not there:
        return
    seen = torch.stack([value.reshape(()) if value.dim() else value for value in observed if value is not None])
    if len(there) == len(observed):
        sums.add_(seen)
        counts.add_(1)
        return
    kept = sums.device == _HOST and not traced(sums)  # one that is made in a capture belongs to its graph
    at, ones = _host_places(there) if kept else _places(there, sums.device)
    sums.index_add_(0, at, seen.float())
    counts.index_add_(0, at, ones)


def _places(there: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return indices and as many ones, int64, filled in on the device: a captured copy would come from the host."""
    at = torch.stack([torch.full((), k, dtype=torch.int64, device=device) for k in there])
    return at, torch.ones_like(at)


@functools.lru_cache(maxsize=256)
def _host_places(there: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return _places(there, _HOST)


def _fits(
    clock: Tensor,
    table: Tensor | None,
    values: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    observed: Sequence[Tensor | None],
) -> bool:
    """Whether the kernel takes these operands; PyTorch computes the others, or refuses them in its own words."""
    place = sums.device
    states = [(clock, torch.int64), (sums, torch.float32), (counts, torch.int64)]
    if table is not None and values is not None:
        states += [(table, torch.float64), (values, torch.float32)]
    return (
        clock.numel() == 1
        and all(t.device == place and t.dtype == dtype and t.is_contiguous() for t, dtype in states)
        and all(t.device == place and t.dtype in OBSERVED_DTYPES and t.numel() == 1 for t in observed if t is not None)
    )
