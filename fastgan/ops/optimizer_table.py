"""Where the tensors of an optimiser lie, as the kernels read it: one table for all, built anew only where one moves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import UserError

PROGRAMS = 8192  # that a step is shared out among, where there is work for more


class Entry(NamedTuple):
    """One parameter and all that moves with it: dense, on one device, one memory order but for the shadow's."""

    param: Tensor
    states: tuple[Tensor | None, Tensor | None, Tensor | None]  # of the parameter's dtype
    step: Tensor | None  # fp32 scalar
    average: Tensor | None  # fp32
    shadow: Tensor | None
    group: int  # which of the groups' numbers are its own
    moves: bool = True  # False: as if it had no gradient


class Table:
    """Addresses and sizes of some entries on their device, and what each program takes of them."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        from fastgan.kernels.optimizer_step import BLOCK, COLUMNS

        self.entries, self.device = entries, entries[0].param.device
        turns = [turn(entry.param, entry.shadow) for entry in entries]
        self.turned = any(way not in (None, (1, 1)) for way in turns)
        self.late = [entry for entry, way in zip(entries, turns, strict=True) if way is None]  # shadows left to PyTorch
        rows = [_row(entry, way) for entry, way in zip(entries, turns, strict=True)]
        sizes = np.array([entry.param.numel() for entry in entries], dtype=np.int64)
        self.rounds = max(1, int(sizes.sum()) // (BLOCK * PROGRAMS))
        counts = -(-sizes // (BLOCK * self.rounds))
        counts[0] = max(1, counts[0])  # somebody has to count the steps of nothing
        owners = np.repeat(np.arange(len(entries)), counts)
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.table = upload(np.array(rows, dtype=np.int64).reshape(len(rows), COLUMNS.value), self.device)
        self.blocks = upload(np.stack([owners, places], 1).astype(np.int32), self.device)
        self._sent, self._moving = b"", self.table
        self._pages = Pages(self.device)

    def moving(self, gradients: Sequence[int], numbers: np.ndarray[Any, Any]) -> Tensor:
        """Return the gradients' addresses and the groups' numbers on the device: sent only where they are new.

        In a capture that copy is a node of the graph: it reads a page of the host's memory at each replay.
        """
        host = np.concatenate([np.array(gradients, dtype=np.int64), numbers])
        content = host.tobytes()
        if content == self._sent:
            return self._moving
        if capturing(self.device):
            return self._pages.write(host).to(self.device, non_blocking=True)
        self._moving, self._sent = upload(host, self.device), content
        self._pages.prepare(host.size)
        return self._moving


class Pages:
    """Pinned memory that captured graphs go on reading: made before a capture, each page written once."""

    COUNT = 64  # that are made at a time: steps of one optimiser in all captured graphs

    def __init__(self, device: torch.device) -> None:
        self._pinned, self._pages = device.type == "cuda", list[Tensor]()

    def prepare(self, size: int) -> None:
        """Make pages for so many int64, if there are none left."""
        if self._pinned and not self._pages:
            made = torch.empty((self.COUNT, size), dtype=torch.int64, pin_memory=True)
            self._pages += made.unbind()

    def write(self, host: np.ndarray[Any, Any]) -> Tensor:
        """Return an array on a page of its own. Nobody gives it back."""
        if not self._pages or len(self._pages[-1]) < host.size:
            self._pages = []
            self.prepare(host.size)
        page = self._pages.pop()[: host.size] if self._pages else torch.empty(host.size, dtype=torch.int64)
        page.numpy()[:] = host
        WRITTEN.append(page)
        return page


WRITTEN: list[Tensor] = []  # for as long as some graph may live


def _row(entry: Entry, way: tuple[int, int] | None) -> list[int]:
    """Return an entry's columns, in the order of ``kernels/optimizer_step.py``."""
    shadow = None if way is None else entry.shadow
    tensors = (entry.param, *entry.states, entry.average, shadow)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    size = entry.param.numel()
    whole = size if all(address % 16 == 0 for address in addresses) else 0
    step = 0 if entry.step is None else entry.step.data_ptr()
    return [*addresses, step, size, whole, entry.group, *(way or (1, 1))]


def turn(param: Tensor, shadow: Tensor | None) -> tuple[int, int] | None:
    """Return (channels, taps): a parameter lies [outer, channels, taps], its shadow [outer, taps, channels].

    (1, 1) where both lie alike; None where neither is so.
    """
    if shadow is None or _order(shadow) == _order(param):
        return 1, 1
    if param.dim() > 2 and param.is_contiguous():
        return param.shape[1], param[0, 0].numel()
    if param.dim() == 2 and param.t().is_contiguous():
        return param.shape[1], param.shape[0]
    return None


def _order(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions that have any."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def shadow_of(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in the memory order that kernels load fastest: a matrix's rows, a convolution's channels last."""
    copy = param.detach().to(dtype)
    if param.dim() < 3:
        return copy.clone(memory_format=torch.contiguous_format)
    last = copy.movedim(1, -1).clone(memory_format=torch.contiguous_format)
    return last.movedim(-1, 1)


def dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, each once, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected and tensor.numel():
            return False
        expected *= size
    return True


def lies_as(tensor: Tensor, param: Tensor) -> bool:
    """Whether a tensor of a dense parameter's sizes has its memory order, element for element."""
    return tensor.stride() == param.stride() or _order(tensor) == _order(param)


def laid_as(tensor: Tensor, param: Tensor) -> Tensor:
    """Return the tensor in the parameter's memory order and dtype: itself where it is so."""
    if tensor.dtype == param.dtype and lies_as(tensor, param):
        return tensor
    return torch.empty_like(param).copy_(tensor)  # a dense parameter's strides are kept


def in_turns(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Share entries out among launches so that parameters that overlap follow each other, in their order.

    Where some overlap, all are clipped, averaged and copied at the very end, as if somebody did it after the step:
    once, though the same parameter be there twice.
    """
    spans = [(e.param.data_ptr(), e.param.data_ptr() + e.param.numel() * e.param.element_size()) for e in entries]
    ordered = sorted(span for span in spans if span[0] < span[1])
    if all(before[1] <= after[0] for before, after in pairwise(ordered)):
        return [list(entries)] if entries else []
    turns: list[list[Entry]] = []
    at: list[int] = []
    for i, (begin, end) in enumerate(spans):
        at.append(max((at[j] + 1 for j in range(i) if spans[j][0] < end and begin < spans[j][1]), default=0))
        turns += [[]] if at[i] == len(turns) else []
        turns[at[i]].append(entries[i]._replace(average=None, shadow=None))
    once = {id(entry.param): entry for entry in entries}.values()
    return [*turns, [entry._replace(states=(None, None, None), step=None, moves=False) for entry in once]]


def upload(host: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array on the device, by way of pinned memory, so that nobody waits; never into a captured graph."""
    if capturing(device):
        raise UserError(
            "a captured step found weights or states of its optimiser elsewhere than the last step did, or none yet:"
            " make one step in front of the capture and leave them in place"
        )
    source = torch.from_numpy(host)
    return source.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else source


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
