"""A launch that is repeated hands over what Triton would, and whatever matters makes it another launch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.compiler.compiler import LazyDict

from fastgan.benchmarks.unlaunched import Deaf, unlaunched
from fastgan.kernels import launch as module
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.tile import Config

TILE = Config(16, 16, 16, 4, 128)
ON_GPU = (pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu))


@triton.jit(do_not_specialize=["M"])
def blend_kernel(M, y, x, x_m, other, slope, ticket, MODE: tl.constexpr, work, BM: tl.constexpr):
    """y = slope x + other, its arguments in no helpful order."""
    at = tl.program_id(0) * BM + tl.arange(0, BM)
    total = tl.load(x + at * x_m, mask=at < M) * slope
    if other is not None:
        total += tl.load(other + at, mask=at < M)
    if MODE == "twice":
        total *= 2
    if work is not None:
        tl.store(work + at, total)
        total = tl.load(work + at)
    if ticket is not None:
        tl.atomic_add(ticket, 0)
    tl.store(y + at, total, mask=at < M)


def blend_launch(
    x: Tensor, other: Tensor | None, y: Tensor, mode: str, slope: float, *, room: bool = False, pair: Any = None
) -> Launch:
    if pair is not None:
        other = pair.shift
    arguments = {"M": x.shape[0], "y": y, "x": x, "x_m": x.stride(0), "other": other, "slope": slope}
    arguments |= {"work": Workspace(64) if room else None, "ticket": Tickets(2) if room else None}
    return Launch(blend_kernel, arguments, {"MODE": mode, "BM": 16}, -(-x.shape[0] // 16), TILE)


class Pair(NamedTuple):
    shift: Tensor | None
    scale: float


class Machine:
    """Where launches go: what reached the launcher in C, and from which device and stream."""

    def __init__(self, driver: Deaf) -> None:
        self.driver = driver
        self.calls: list[tuple[Any, ...]] = []

    def heard(self) -> list[object]:
        """The last call: tensors as addresses, None for hooks that nobody has set and for what they would be told."""
        return [addressed(value) for value in self.calls[-1]]


def addressed(value: Any) -> Any:
    if isinstance(value, LazyDict) or (isinstance(value, knobs.HookChain) and not value.calls):
        return None
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, (tuple, list)) and any(isinstance(member, Tensor) for member in value):
        return tuple(addressed(member) for member in value)
    return tuple(value) if isinstance(value, list) else value


@pytest.fixture
def machine() -> Iterator[Machine]:
    with unlaunched(blend_kernel) as driver:
        machine = Machine(driver)
        driver.listen = lambda *call: machine.calls.append(call)
        yield machine


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches that went through Triton in full."""
    launches: list[Launch] = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (launches.append(launch), run(launch))[1])
    return launches


def operands(rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x, other = torch.randn(2, rows, generator=torch.Generator().manual_seed(seed)).clone().unbind()
    return x.clone(), other.clone(), torch.full((rows,), torch.nan)


@pytest.mark.parametrize("mode", ["once", "twice"])
@pytest.mark.parametrize("with_other", [True, False])
def test_a_replay_hands_over_what_triton_does(
    machine: Machine, built: list[Launch], mode: str, with_other: bool
) -> None:
    for seed in range(3):
        x, other, y = operands(seed=seed)
        second = other if with_other else None
        submit(blend_launch, (x, second), (y,), mode, 0.25)
        replayed = machine.heard()
        blend_launch(x, second, y, mode, 0.25).run()
        assert replayed == machine.heard()
        machine.driver.stream += 10
    assert len(built) == 1 + 3  # the first of its kind, and those to compare with
    assert len(machine.calls) == 6


def test_the_call_holds_grid_stream_and_arguments_in_their_places(machine: Machine) -> None:
    x, other, y = operands(33)
    for _ in range(2):
        submit(blend_launch, (x, other), (y,), "once", 0.25)
        call = machine.heard()
        arguments = call[-1] if isinstance(call[-1], tuple) else tuple(call[-10:])
        assert call[:5] == [3, 1, 1, 77, 4242]
        assert arguments == (33, y.data_ptr(), x.data_ptr(), 1, other.data_ptr(), 0.25, None, "once", None, 16)


def test_memory_of_a_launch_is_its_own(machine: Machine, built: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    for room in (Workspace, Tickets):
        on = room.on
        monkeypatch.setattr(room, "on", lambda room, operand, on=on: (taken.append(on(room, operand)), taken[-1])[1])
    for _ in range(3):
        submit(blend_launch, (operands()[0], None), (operands()[2],), "once", 0.5, room=True)
        call = machine.heard()
        arguments = call[-1] if isinstance(call[-1], tuple) else tuple(call[-10:])
        assert {arguments[6], arguments[8]} == {memory.data_ptr() for memory in taken[-2:]}
    assert len(built) == 1 and len(taken) == 6
    assert [memory.dtype for memory in taken[-2:]].count(torch.int32) == 1


def test_whatever_matters_makes_another_kind(machine: Machine, built: list[Launch]) -> None:
    x, other, y = operands()
    wide = torch.randn(200)
    calls: list[Callable[[], None]] = [
        lambda: submit(blend_launch, (x, other), (y,), "once", 0.25),
        lambda: submit(blend_launch, (x[:32], other), (y,), "once", 0.25),
        lambda: submit(blend_launch, (wide[:80:2], other), (y,), "once", 0.25),
        lambda: submit(blend_launch, (wide[1:41], other), (y,), "once", 0.25),
        lambda: submit(blend_launch, (x.half(), other), (y,), "once", 0.25),
        lambda: submit(blend_launch, (x, other), (y.half(),), "once", 0.25),
        lambda: submit(blend_launch, (x, other), (torch.empty(44)[1:41],), "once", 0.25),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25),
        lambda: submit(blend_launch, (x, other), (y,), "twice", 0.25),
        lambda: submit(blend_launch, (x, other), (y,), "once", 0.5),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, pair=None),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, room=None),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(other, 1.0)),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(None, 1.0)),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(other, 2.0)),
        lambda: submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(wide[1:41], 2.0)),
    ]
    for at, call in enumerate(calls):
        call()
        assert len(built) == at + 1
    machine.driver.device = machine.driver.holder = 1
    calls[0]()
    assert len(built) == len(calls) + 1 and machine.heard()[3:5] == [78, 4243]
    machine.driver.device = machine.driver.holder = 0
    for call in calls:
        call()
    assert len(built) == len(calls) + 1


def test_another_device_than_the_current_one_is_made_current(
    machine: Machine, built: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def current(device: int) -> Iterator[None]:
        former, machine.driver.device = machine.driver.device, device
        yield
        machine.driver.device = former

    seen: list[int] = []
    machine.driver.listen = lambda *call: (machine.calls.append(call), seen.append(machine.driver.device))
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: current(tensor.get_device()))
    machine.driver.holder = 1
    x, other, y = operands()
    for _ in range(2):
        submit(blend_launch, (x, other), (y,), "once", 0.25)
        assert machine.heard()[3:5] == [78, 4243] and seen[-1] == 1 and machine.driver.device == 0
    assert len(built) == 1


def test_tensors_in_groups_are_handed_over(machine: Machine, built: list[Launch]) -> None:
    for seed in range(2):
        x, other, y = operands(seed=seed)
        submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(other, 1.0))
        replayed = machine.heard()
        blend_launch(x, None, y, "once", 0.25, pair=Pair(other, 1.0)).run()
        assert replayed == machine.heard()


def test_hooks_hear_of_every_launch(machine: Machine, built: list[Launch]) -> None:
    x, other, y = operands()
    told: list[str] = []
    chains = [knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook]
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    for chain in chains:
        hook = lambda metadata: told.append(metadata)  # noqa: E731
        chain.add(hook)
        submit(blend_launch, (x, other), (y,), "once", 0.25)
        assert chain in machine.calls[-1]  # with the chain in its hands, the launcher in C calls it
        chain.remove(hook)
    blend_kernel.add_pre_run_hook(lambda *of, **named: told.append("before"))
    try:
        submit(blend_launch, (x, other), (y,), "once", 0.25)
    finally:
        blend_kernel.pre_run_hooks.clear()
    assert told == ["before"] and len(built) == 4
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    assert len(built) == 4 and not set(map(id, chains)) & set(map(id, machine.calls[-1]))


def test_what_cannot_be_repeated_goes_through_triton_and_says_so(
    machine: Machine, built: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, other, y = operands()
    for at, (build, second, why) in enumerate(((blend_launch, x, "given twice"), (copying_launch, other, "not given"))):
        submit(build, (x, second), (y,), "once", 0.25)
        with pytest.warns(RuntimeWarning, match=f"blend_kernel goes through Triton at every launch.*{why}"):
            submit(build, (x, second), (y,), "once", 0.25)
        assert len(built) == 2 * at + 2
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    submit(blend_launch, (x, x), (y,), "once", 0.25)
    assert len(built) == 5 and machine.heard() != machine.calls[-2]  # by now it is known which is which
    monkeypatch.setattr(nvidia.CudaLauncher, "__call__", lambda *arguments: None)
    module.forget()
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    with pytest.warns(RuntimeWarning, match="another way"):
        submit(blend_launch, (x, other), (y,), "once", 0.25)


def copying_launch(x: Tensor, other: Tensor, y: Tensor, mode: str, slope: float) -> Launch:
    return blend_launch(x, other.clone(), y, mode, slope)


def test_scratch_memory_is_left_to_triton(machine: Machine, built: list[Launch]) -> None:
    x, other, y = operands()
    compiled = blend_launch(x, other, y, "once", 0.25).run()
    compiled.metadata = compiled.metadata._replace(global_scratch_size=128)
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    with pytest.warns(RuntimeWarning, match="scratch"):
        submit(blend_launch, (x, other), (y,), "once", 0.25)
    assert len(built) == 3


def test_no_more_kinds_are_kept_than_allowed(
    machine: Machine, built: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KINDS", 4)
    x, other, y = operands()
    for slope in range(11):
        submit(blend_launch, (x, other), (y,), "once", float(slope))
        assert 1 <= len(module._replays) <= 4
    assert len(built) == 11


def test_no_tensor_is_kept_alive(machine: Machine) -> None:
    import gc
    import weakref

    x, other, y = operands()
    for _ in range(2):
        submit(blend_launch, (x, None), (y,), "once", 0.25, pair=Pair(other, 1.0), room=True)
    machine.calls.clear()
    ends = [weakref.ref(tensor) for tensor in (x, other, y)]
    del x, other, y
    gc.collect()
    assert [end() for end in ends] == [None] * 3


def test_threads_may_submit_at_once(machine: Machine) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for slope in range(20):
                x, other, y = operands(seed=seed)
                submit(blend_launch, (x, other), (y,), "once", float(slope % 3))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(machine.calls) == 80 and len(module._replays) == 3


@pytest.mark.parametrize("device", ON_GPU)
def test_submit_computes_what_run_does(device: str) -> None:
    for seed in range(3):
        x, other, y = (tensor.to(device) for tensor in operands(seed=seed))
        submit(blend_launch, (x, other), (y,), "twice", 0.25, room=True)
        by_run = torch.full_like(y, torch.nan)
        blend_launch(x, other, by_run, "twice", 0.25, room=True).run()
        assert torch.equal(y, by_run)
        torch.testing.assert_close(y, 2 * (0.25 * x + other))


@pytest.mark.gpu
def test_replays_follow_the_stream_and_are_captured() -> None:
    x, other, y = (tensor.cuda() for tensor in operands())
    expected = 0.25 * x + other
    submit(blend_launch, (x, other), (y,), "once", 0.25)
    side = torch.cuda.Stream()
    y.fill_(torch.nan)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.mul_(2)
        submit(blend_launch, (x, other), (y,), "once", 0.25)
    side.synchronize()
    torch.testing.assert_close(y, 0.25 * x + other)
    x.div_(2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        submit(blend_launch, (x, other), (y,), "once", 0.25)
    y.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(y, expected)
    x.zero_()
    graph.replay()
    torch.testing.assert_close(y, other)
