"""tick in plain PyTorch: formulas and their ends, sums and counts, what is refused, nothing read on the host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.errors import UserError
from fastgan.ops.backend import explain
from fastgan.ops.tick import KINDS, scheduled, tick

aten = torch.ops.aten
BEGIN, LENGTH = 10, 40
FIRST, LAST = 1.0, 1e-20  # 1 + (1e-20 - 1) is 0


class NoReads(TorchDispatchMode):
    """Forbids what a capture forbids: values on the host, and data from there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        assert func not in (aten._local_scalar_dense.default, aten.lift_fresh.default, aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def table_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


def states(K: int, clock: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(clock), torch.zeros(K), torch.zeros(K, dtype=torch.int64)


def formula(kind: str, clock: int) -> float:
    p = (clock - BEGIN) / LENGTH
    if kind == "constant" or p <= 0:
        return FIRST
    if p >= 1:
        return LAST
    if kind == "linear":
        return FIRST + (LAST - FIRST) * p
    if kind == "cosine":
        return LAST + (FIRST - LAST) * (1 + math.cos(math.pi * p)) / 2
    return FIRST * (LAST / FIRST) ** p


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_schedules_are_their_formulas(kind: str, watched: bool) -> None:
    table = table_of((KINDS[kind], FIRST, LAST, BEGIN, LENGTH))
    for clock in (0, 9, 10, 11, 20, 30, 37, 49, 50, 51, 2**40):
        if watched:
            with NoReads():
                got = scheduled(table, torch.full((), clock))
        else:
            got = scheduled(table, torch.tensor(clock))
        assert got.dtype == torch.float32 and got.shape == (1,)
        exact = torch.tensor([formula(kind, clock)], dtype=torch.float64).float()
        assert abs(int(got.view(torch.int32)) - int(exact.view(torch.int32))) <= (BEGIN < clock < BEGIN + LENGTH)


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_of_zero_jumps_at_its_begin(kind: str) -> None:
    table = table_of((KINDS[kind], FIRST, LAST, BEGIN, 0))
    first, last = table[0, 1:3].float().tolist()
    seen = [float(scheduled(table, torch.tensor(clock))) for clock in (0, 9, 10, 11)]
    assert seen == ([first] * 4 if kind == "constant" else [first, first, last, last])


def test_each_row_is_a_schedule_of_its_own() -> None:
    """A zero where only an exponential minds does no harm."""
    rows = [
        (KINDS["linear"], 0, 2, 0, 4),
        (KINDS["cosine"], 0, 2, 0, 4),
        (0, 7, 0, 0, 0),
        (KINDS["linear"], 5, 0, 9, 1),
    ]
    assert scheduled(table_of(*rows), torch.tensor(2)).tolist() == [1, 1, 7, 5]
    assert scheduled(table_of(), torch.tensor(2)).shape == (0,)


def test_the_clock_moves_before_the_schedules() -> None:
    clock, sums, counts = states(0)
    table, values = table_of((1, 0, 8, 0, 8), (0, 3, 0, 0, 0)), torch.full((2,), math.nan)
    for turn in range(1, 4):
        tick(clock, table, values, sums, counts, [])
        assert int(clock) == turn and values.tolist() == [turn, 3]
    tick(clock, None, values, sums, counts, [])  # nothing moves
    assert int(clock) == 4 and values.tolist() == [3, 3]
    tick(clock, table, values, sums, counts, [], advance=False)
    assert int(clock) == 4 and values.tolist() == [3, 3]
    tick(clock, table[:0], values[:0], sums, counts, [])
    tick(clock, None, None, sums, counts, [])
    assert int(clock) == 6


@pytest.mark.parametrize("advance", [True, False])
def test_who_is_there_is_summed(advance: bool) -> None:
    """Elements of other tensors, shapes () and (1), gaps; the others' sums keep their very bits."""
    clock, sums, counts = states(5)
    sums[3] = -0.0
    watched = torch.tensor([1.0, 2.0, 3.0])
    for observed in (
        [watched[0], watched[1:2], None, None, torch.tensor(0.5)],
        [torch.tensor([2.0]), None, watched[2], None, None],
        [None] * 5,
    ):
        tick(clock, None, None, sums, counts, observed, advance=advance)
    assert sums.tolist() == [3, 2, 3, 0, 0.5] and bool(sums[3].signbit())
    assert counts.tolist() == [2, 1, 1, 0, 1] and int(clock) == 3 * advance
    tick(clock, None, None, sums, counts, list(watched[[0, 1, 2, 0, 0]]))
    assert sums.tolist() == [4, 4, 6, 1, 1.5] and counts.tolist() == [3, 2, 2, 1, 2]


@pytest.mark.parametrize("gap", [False, True])
def test_sixteen_bits_are_added_in_fp32(gap: bool) -> None:
    clock, sums, counts = states(3)
    sums.fill_(4096)
    thirds = [torch.tensor(1 / 3, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    tick(clock, None, None, sums, counts, [*thirds, None if gap else thirds[0]])
    assert [float(s) for s in sums[:2]] == [float(torch.tensor(4096.0) + third.float()) for third in thirds]
    assert sums[0] != 4096


def test_nan_and_infinity_pass_through() -> None:
    clock, sums, counts = states(3)
    for _ in range(2):
        tick(clock, None, None, sums, counts, [torch.tensor(x) for x in (math.nan, math.inf, 1.0)])
    assert sums[0].isnan() and sums[1:].tolist() == [math.inf, 2] and counts.tolist() == [2, 2, 2]


def test_no_graph_is_kept() -> None:
    clock, sums, counts = states(2)
    loss = torch.ones((), requires_grad=True) * 2
    for observed in ([loss, loss], [loss, None]):
        tick(clock, None, None, sums, counts, observed)
    assert not sums.requires_grad and sums.tolist() == [4, 2] and loss.requires_grad


@pytest.mark.parametrize("observed", [[True, True], [None, True], []])
def test_nothing_is_read_on_the_host(observed: list[bool | None]) -> None:
    clock, sums, counts = states(len(observed))
    table, values = table_of(*((kind, 1.0, 0.5, 0, 8) for kind in range(4))), torch.zeros(4)
    one = torch.ones(())
    with NoReads():
        tick(clock, table, values, sums, counts, [there and one for there in observed])
    assert int(clock) == 1 and sums.tolist() == [float(bool(there)) for there in observed]
    torch.testing.assert_close(values, scheduled(table, clock))


def test_what_inference_has_left_behind_serves_training() -> None:
    one = torch.ones(())
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode:
            clock, sums, counts = states(7)
            tick(clock, None, None, sums, counts, [one, None, None, one, None, None, one])
            assert sums.tolist() == [1, 0, 0, 1, 0, 0, 1]


def test_what_is_refused() -> None:
    clock, sums, counts = states(17)
    one, table = torch.ones(()), table_of((0, 1, 0, 0, 0))
    with pytest.raises(ValueError, match="at most 16 scalars, not 17"):
        tick(clock, None, None, sums, counts, [one] * 17)
    for bad in ((sums[:2], counts[:3]), (sums[:3], counts[:2]), (sums[:1], counts[:1]), (sums[:3, None], counts[:3])):
        with pytest.raises(UserError, match="3 observed need sums and counts of shape"):
            tick(clock, None, None, *bad, [one] * 3)
    for values in (None, sums[:2], sums[:1, None], sums[0]):
        with pytest.raises(UserError, match="a table of shape"):
            tick(clock, table, values, sums[:0], counts[:0], [])
    with pytest.raises(RuntimeError, match="shape"):
        tick(clock, None, None, sums[:1], counts[:1], [torch.ones(2)])
    assert not sums.any() and not counts.any() and int(clock) == 0


def test_it_is_among_the_ops() -> None:
    assert "tick" in [choice.op for choice in explain(torch.device("cpu"))]


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_the_kernels_do_as_the_reference_does(device: str) -> None:
    """The same object twice, a graph, a state that the kernels do not take; writes are seen by autograd."""
    results = []
    for name in ("triton", "reference"):
        clock, sums, counts = (state.to(device) for state in states(4))
        table, values = table_of((1, 0, 8, 0, 8)).to(device), torch.zeros(1, device=device)
        loss = torch.ones((), device=device, requires_grad=True) * 2
        before = [t._version for t in (clock, sums, counts, values)]
        with fastgan.backend(name):
            tick(clock, table, values, sums, counts, [loss, loss, None, loss[None]])
            assert all(t._version > v for t, v in zip((clock, sums, counts, values), before, strict=True))
            strided = torch.zeros(8, device=device)[::2]
            tick(clock, table, values, strided, counts, [loss, loss, None, loss])
        assert not sums.requires_grad
        results.append([t.tolist() for t in (clock, sums, counts, values, strided)])
    assert results[0] == results[1] == [2, [2, 2, 0, 2], [2, 2, 0, 2], [2], [2, 2, 0, 2]]
