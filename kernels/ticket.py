"""Tickets: the last program to arrive finishes what all have begun, in a fixed order and without another launch.

Each program stores its part, takes a ticket, and goes; the one that finds all others gone reads the parts and puts them
together. Sums are then the same bits whoever came last. A ticket is one int32 that is 0 before and after.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 4096  # tickets in a buffer: one buffer serves nearly every launch of a process
FOR_GRAPHS = 2**20  # tickets that captured launches take for good, 4 MiB

_buffers: dict[tuple[int, int], Tensor] = {}
_for_graphs: dict[int, Tensor] = {}  # by device: those that no graph has taken yet


@triton.jit
def arrives_last(ticket, parts):
    """Whether this program is the last of ``parts``; it then sees what they stored, if it loads with ``.cg``."""
    tl.debug_barrier()  # all threads have stored before one of them says so
    last = tl.atomic_add(ticket, 1, sem="acq_rel") == parts - 1
    if last:
        tl.store(ticket, 0)
    return last


def tickets(operand: Tensor, count: int) -> Tensor:
    """Return at least ``count`` zeros on the operand's device, which every launch leaves as zeros.

    Launches on one stream follow each other and share them. A graph may be replayed on any stream, beside anything:
    each launch that is captured gets its own for good, zeroed before; where none were made yet, zeroed in the graph.
    """
    if not operand.is_cuda:
        return torch.zeros(count, dtype=torch.int32, device=operand.device)
    at = operand.get_device()
    if torch.cuda.is_current_stream_capturing():
        return _taken(at, count, operand.device)
    key = (at, torch._C._cuda_getCurrentRawStream(at))
    buffer = _buffers.get(key)
    if buffer is None or buffer.numel() < count:
        buffer = _buffers[key] = _lasting(max(LEAST, count), operand.device)
        if at not in _for_graphs:
            _for_graphs[at] = _lasting(FOR_GRAPHS, operand.device)
    return buffer


def _taken(at: int, count: int, device: torch.device) -> Tensor:
    """Take tickets that nobody else will ever have."""
    left, room = _for_graphs.get(at), -(-count // 4) * 4  # each begins on 16 bytes, as kernels are compiled for
    if left is None or left.numel() < room:
        return torch.zeros(count, dtype=torch.int32, device=device)
    _for_graphs[at] = left[room:]
    return left[:count]


def _lasting(count: int, device: torch.device) -> Tensor:
    """Return zeros that outlive a compiler's warm-up, whose memory pool takes all that its own thread allocates."""
    stream = torch.cuda.current_stream(device)

    def zeros() -> Tensor:
        with torch.cuda.stream(stream):
            return torch.zeros(count, dtype=torch.int32, device=device)

    with ThreadPoolExecutor(1) as other:
        return other.submit(zeros).result()
