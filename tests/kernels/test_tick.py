"""The end of an iteration by the kernel: the reference's bits, exact ends of schedules, nothing written beside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.ops.tick import KINDS, MOST, tick

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import tick as kernels
from fastgan.kernels.tick import half_cosine

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EXACT = {"cpu": {"constant", "linear"}, "cuda": {"constant"}}  # a GPU multiplies and adds in one rounding, in fp64
NUMBERS = [0.0, -0.0, 1.0, -2.5, 1e-3, 3e4, math.nan, math.inf, -math.inf]


class States:
    """What a tick writes to, amid numbers that it must leave alone."""

    def __init__(self, rows: list[tuple[float, ...]], K: int, clock: int, device: str) -> None:
        self.S, self.K = len(rows), K
        self.clocks = torch.tensor([7, clock, 9], device=device)
        self.table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 5)
        self.floats = torch.linspace(-3, 3, self.S + K + 24, device=device)
        self.integers = torch.arange(K + 16, device=device)

    @property
    def clock(self) -> Tensor:
        return self.clocks[1]

    @property
    def values(self) -> Tensor:
        return self.floats[8 : 8 + self.S]

    @property
    def sums(self) -> Tensor:
        return self.floats[-8 - self.K : -8]

    @property
    def counts(self) -> Tensor:
        return self.integers[8 : 8 + self.K]

    def tick(self, run: Any, observed: list[Tensor | None], advance: bool = True) -> None:
        run(self.clock, self.table, self.values, self.sums, self.counts, tuple(observed), advance=advance)


def bits(tensor: Tensor) -> Tensor:
    """The bits of float32, any NaN being one."""
    return torch.where(tensor.isnan(), torch.full_like(tensor, math.nan), tensor).view(torch.int32)


def agree(got: States, expected: States, device: str) -> None:
    """All that the two hold is the same: to the bit, but for one unit of the last place of curves."""
    assert torch.equal(got.clocks, expected.clocks) and torch.equal(got.integers, expected.integers)
    apart = bits(got.floats).long() - bits(expected.floats).long()
    kinds = got.table[:, 0].long().tolist()
    names = {number: name for name, number in KINDS.items()}
    for s, kind in enumerate(kinds):
        if names[kind] not in EXACT[device]:
            assert abs(int(apart[8 + s])) <= 1
            apart[8 + s] = 0
    assert not apart.any()


number = st.sampled_from((1e-3, 2e-4, 0.5, 0.999, 1.0, 3.0, 1e-6, 250.0))
row = st.tuples(
    st.integers(0, 3), number, number, st.sampled_from((0, 3, 10, 1000)), st.sampled_from((0, 1, 7, 100, 10**6))
)
scalar = st.none() | st.tuples(st.sampled_from(NUMBERS), st.sampled_from(DTYPES), st.sampled_from(((), (1,))))


@on_devices
@settings(max_examples=40)
@given(
    rows=st.lists(row, max_size=5) | st.lists(row, min_size=31, max_size=34),
    scalars=st.lists(scalar, max_size=16),
    clock=st.integers(0, 20) | st.integers(0, 10**6) | st.just(2**40),
    advance=st.sampled_from((True, True, False)),
)
def test_bits_of_the_reference(
    device: str, rows: list[tuple[float, ...]], scalars: list[Any], clock: int, advance: bool
) -> None:
    observed = [s and torch.full(s[2], s[0], dtype=s[1], device=device) for s in scalars]
    got, expected = (States(rows, len(observed), clock, device) for _ in range(2))
    got.tick(kernels.tick, observed, advance)
    with fastgan.backend("reference"):
        expected.tick(tick, observed, advance)
    agree(got, expected, device)


@triton.jit
def half_cosine_kernel(p, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, half_cosine(tl.load(p + at)))


@on_devices
def test_half_cosine_is_that_of_fp64(device: str) -> None:
    p = torch.linspace(0, 1, 1024, dtype=torch.float64, device=device)
    p[500] = 0.5
    out = torch.full_like(p, math.nan)
    half_cosine_kernel[(1,)](p, out, COUNT=1024)
    assert float((out - (1 + torch.cos(math.pi * p)) / 2).abs().max()) < 4e-16
    assert out[0] == 1 and out[-1] == 0


@on_devices
@pytest.mark.parametrize("ends", [(1.0, 1e-20), (1e-20, 1.0)])
@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_ends_are_exact(device: str, kind: str, ends: tuple[float, float]) -> None:
    """Of numbers that the formulas would not give back: 1 + (1e-20 - 1) is 0. A length of 0 is a jump."""
    states, seen = States([(KINDS[kind], *ends, 5, 3), (KINDS[kind], *ends, 8, 0)], 0, 3, device), []
    for _ in range(6):
        states.tick(kernels.tick, [])
        seen.append(states.values.tolist())
    first, last = torch.tensor(ends).tolist()
    assert [first, first] == seen[0] == seen[1] and [last, last] == seen[4] == seen[5]  # clocks 4, 5; 8, 9
    between = [row[0] for row in seen[1:5]]
    assert [row[1] for row in seen[2:4]] == [first, first] and len(set(between)) == 4
    assert between == sorted(between, reverse=first > last)


@on_devices
def test_an_observed_schedule_is_the_old_one(device: str) -> None:
    states = States([(1, 0.0, 8.0, 0, 8), (1, 8.0, 0.0, 0, 8)], 2, 0, device)
    states.floats.zero_()
    for _ in range(4):
        states.tick(kernels.tick, [states.values[0], states.values[1:]])
    assert states.values.tolist() == [4, 4] and states.sums.tolist() == [0 + 1 + 2 + 3, 0 + 7 + 6 + 5]


@on_devices
def test_nothing_to_do(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = States([(1, 0.0, 8.0, 0, 8)], 3, 0, device)
    before = states.floats.clone()
    monkeypatch.setattr(kernels, "submit", None)
    states.tick(kernels.tick, [None] * 3, advance=False)
    assert torch.equal(states.floats, before) and int(states.clock) == 0


def test_kinds_are_the_references() -> None:
    assert {name: getattr(kernels, name.upper()).value for name in KINDS} == KINDS
    assert kernels.MOST == MOST == len(kernels.OBSERVED)


@pytest.mark.gpu
def test_a_captured_tick_replays_as_it_runs() -> None:
    """Five replays, with other observations each time, are five eager ticks."""
    rows = [(kind, 0.5, 0.125, 1, length) for kind in range(4) for length in (0, 3, 4)]
    captured, eager = (States(rows, 4, 0, "cuda") for _ in range(2))
    loss = torch.zeros((), device="cuda", requires_grad=True)
    watched = torch.zeros(4, dtype=torch.bfloat16, device="cuda")

    def end(states: States) -> None:
        states.tick(tick, [loss, None, watched[1], states.values[3:4]])

    end(States(rows, 4, 0, "cuda"))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        end(captured)
    assert int(captured.clock) == 0
    for turn in range(5):
        loss.data.fill_(turn + 0.5)
        watched.fill_(-turn)
        graph.replay()
        end(eager)
        for name in ("clocks", "floats", "integers"):
            assert torch.equal(getattr(captured, name), getattr(eager, name)), (turn, name)
    assert int(captured.clock) == 5 and captured.counts.tolist() == [13, 9, 15, 16]


@pytest.mark.gpu
def test_a_captured_reference_replays_too() -> None:
    """Plain PyTorch reads nothing on the host either, gaps and schedules included."""
    rows = [(kind, 0.5, 0.125, 1, 3) for kind in range(4)]
    captured, eager = (States(rows, 3, 0, "cuda") for _ in range(2))
    loss = torch.ones((), device="cuda")
    with fastgan.backend("reference"):
        States(rows, 3, 0, "cuda").tick(tick, [loss, None, loss])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.tick(tick, [loss, None, loss])
        for _ in range(5):
            graph.replay()
            eager.tick(tick, [loss, None, loss])
    for name in ("clocks", "floats", "integers"):
        assert torch.equal(getattr(captured, name), getattr(eager, name))
