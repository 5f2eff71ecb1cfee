"""Tickets: who is told to be last, what the last one sees, and which launches share a buffer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import ticket as tickets_module
from fastgan.kernels.ticket import LEAST, arrives_last, tickets

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)


@triton.jit
def meeting_kernel(values, store, ticket, told, sums, members, B: tl.constexpr):
    """Programs meet in rooms of ``members``: each leaves its values [B] behind, the last one in a room adds up all."""
    program = tl.program_id(0)
    room, b = program // members, tl.arange(0, B)
    tl.store(store + program * B + b, tl.load(values + program * B + b))
    if arrives_last(ticket + room, members):
        tl.store(told + program, 1)
        total = tl.zeros([B], tl.int64)
        for member in range(members):
            total += tl.load(store + (room * members + member) * B + b, cache_modifier=".cg")
        tl.store(sums + room * B + b, total)


def meet(rooms: int, members: int, ticket: Tensor) -> None:
    """Let programs meet, and check who was last and what it found."""
    device, size = ticket.device, (rooms, members, 256)
    values = torch.randint(1, 1000, size, generator=torch.Generator().manual_seed(members)).to(device)
    store, sums = torch.full_like(values, -(2**40)), torch.full_like(values[:, 0], -1)
    told = torch.zeros(rooms, members, dtype=torch.int32, device=device)
    meeting_kernel[(rooms * members,)](values, store, ticket, told, sums, members, 256)
    assert (told.sum(1) == 1).all()
    assert torch.equal(sums, values.sum(1))
    assert not ticket.any()


@on_devices
def test_one_is_last_and_sees_what_all_have_left(device: str) -> None:
    """Meeting after meeting, of other sizes, with the same tickets; a room of one program as well."""
    ticket = tickets(torch.empty(0, device=device), 64)
    sizes = [(3, 5), (7, 1), (1, 9), (2, 4)] if device == "cpu" else [(3, 5), (64, 1), (1, 2000), (50, 64)] * 20
    for rooms, members in sizes:
        meet(rooms, members, ticket)


@pytest.mark.interpret
def test_whoever_comes_last(renumber: Callable[[Callable[[int, int], int]], None]) -> None:
    ticket = tickets(torch.empty(0), 8)
    for seed in range(4):
        renumber(lambda i, n, seed=seed: int(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[i]))
        meet(4, 6, ticket)


@on_devices
@pytest.mark.parametrize("count", [0, 1, LEAST, LEAST + 1])
def test_there_are_enough_and_all_are_zero(device: str, count: int) -> None:
    buffer = tickets(torch.empty(0, device=device), count)
    assert buffer.dtype == torch.int32 and buffer.device.type == device
    assert buffer.numel() >= count and not buffer.any()


@pytest.mark.gpu
def test_launches_on_a_stream_share_a_buffer_and_streams_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "_buffers", {})
    operand = torch.empty(0, device="cuda")
    first = tickets(operand, 5)
    assert tickets(operand, LEAST) is first
    assert tickets(operand, LEAST + 1).data_ptr() != first.data_ptr()
    with torch.cuda.stream(torch.cuda.Stream()):
        other = tickets(operand, 5)
        assert tickets(operand, 7) is other
    assert other.data_ptr() not in (first.data_ptr(), tickets(operand, 5).data_ptr())


@pytest.mark.gpu
def test_a_graph_has_its_own_and_replays_right() -> None:
    """Replay after replay, without a node that zeroes them."""
    rooms, members = 4, 100
    values = torch.randint(1, 1000, (rooms, members, 256), device="cuda")
    store, sums = torch.empty_like(values), torch.empty_like(values[:, 0])
    told = torch.zeros(rooms, members, dtype=torch.int32, device="cuda")
    usual = tickets(values, rooms)
    meeting_kernel[(rooms * members,)](values, store, usual, told, sums, members, 256)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own = tickets(values, rooms)
        meeting_kernel[(rooms * members,)](values, store, own, told, sums, members, 256)
    assert own.data_ptr() != usual.data_ptr()
    for _ in range(3):
        sums.zero_()
        graph.replay()
        assert torch.equal(sums, values.sum(1)) and not own.any()


def test_no_two_graphs_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all are given away: then each is zeroed in its graph."""
    monkeypatch.setattr(tickets_module, "_for_graphs", {})
    cpu = torch.device("cpu")
    assert not tickets_module._taken(0, 3, cpu).any()  # none were made yet
    tickets_module._for_graphs[0] = torch.zeros(14, dtype=torch.int32)
    taken = [tickets_module._taken(0, count, cpu) for count in (3, 4, 3, 2)]
    for number, part in enumerate(taken, 1):
        part.fill_(number)
    assert [part.tolist() for part in taken] == [[1] * 3, [2] * 4, [3] * 3, [4] * 2]
    assert [part.data_ptr() - taken[0].data_ptr() for part in taken[:3]] == [0, 16, 32]
