"""Clocks: how long a call takes, variants interleaved, by the host and by the device.

A call is a function without arguments. A contender is a sequence of them: the same work on different copies of its
inputs, called in turn, so that copies which together exceed the L2 cache never come from it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from fastgan.benchmarks.record import Spread
from fastgan.benchmarks.setting import Effort

Call = Callable[[], object]
MOST_QUEUED = 500  # launches that a CUDA stream takes before the host must wait, with room to spare
CYCLES_PER_US = 2000  # of a fast GPU: a sleep may last longer than meant, never shorter


class Clock(Protocol):
    """Times a batch of calls."""

    def sample(self, batch: Sequence[Call]) -> float:
        """Return microseconds for the whole batch."""
        ...


class WallClock:
    """The host's clock, from the first call until the device has done the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sample(self, batch: Sequence[Call]) -> float:
        """Return microseconds for the whole batch."""
        synchronize(self.device)
        start = time.perf_counter_ns()
        for call in batch:
            call()
        synchronize(self.device)
        return (time.perf_counter_ns() - start) / 1e3


class DeviceClock:
    """CUDA events around a batch whose launches were queued behind a sleeping kernel, so that no launch is waited for.

    With more than ``MOST_QUEUED`` launches in a batch the host is part of what is measured again.
    """

    def __init__(self, device: torch.device, backlog: bool = True) -> None:
        self.device = device
        self.backlog = backlog
        self.host_us = 0.0  # what the slowest batch took the host

    def sample(self, batch: Sequence[Call]) -> float:
        """Return microseconds for the whole batch."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        synchronize(self.device)
        if self.backlog:
            torch.cuda._sleep(int(min(self.host_us * 1.5 + 50, 20_000) * CYCLES_PER_US))
        start = time.perf_counter_ns()
        begin.record()
        for call in batch:
            call()
        end.record()
        self.host_us = max(self.host_us, (time.perf_counter_ns() - start) / 1e3)
        end.synchronize()
        return begin.elapsed_time(end) * 1e3


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do; a CPU never has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    contenders: Mapping[str, Sequence[Call]], clock: Clock, effort: Effort, most: int = 100_000
) -> dict[str, Spread]:
    """Time contenders in turns, each sample a batch of about ``effort.sample_us`` and at most ``most`` calls.

    Returns microseconds for one call. Where time runs out there are fewer than ``effort.repeats`` samples, but at least
    ``effort.least``; ``n`` says how many.
    """
    turns = {name: itertools.cycle(calls) for name, calls in contenders.items()}
    with collector_off():
        sizes = {name: batch_size(turn, len(contenders[name]), clock, effort, most) for name, turn in turns.items()}
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        start = time.monotonic()
        for repeat in range(effort.repeats):
            if repeat >= effort.least and time.monotonic() - start > effort.seconds:
                break
            for name in rotated(list(contenders), repeat):
                batch = list(itertools.islice(turns[name], sizes[name]))
                samples[name].append(clock.sample(batch) / len(batch))
    return {name: Spread.of(taken) for name, taken in samples.items()}


def batch_size(turn: Iterator[Call], copies: int, clock: Clock, effort: Effort, most: int) -> int:
    """Warm a contender up on each of its copies and find how many calls make a sample."""
    clock.sample(list(itertools.islice(turn, copies)))
    size, taken = 1, 0.0
    while size < most:
        taken = clock.sample(list(itertools.islice(turn, size)))
        if taken >= effort.sample_us / 4:
            break
        size = min(most, size * 4)
    return max(1, min(most, math.ceil(size * effort.sample_us / max(taken, 1e-3))))


def rotated(names: list[str], by: int) -> list[str]:
    """Let each round begin with another contender: none always runs after the same one."""
    cut = by % len(names) if names else 0
    return names[cut:] + names[:cut]


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now and not while the clock runs."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def graph_of(calls: Sequence[Call], device: torch.device, warm_up: int = 3) -> torch.cuda.CUDAGraph:
    """Capture the calls, one after another, in one CUDA graph, after ``warm_up`` rounds on a side stream."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            for call in calls:
                call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def scaled(spread: Spread, calls: int) -> Spread:
    """Return the spread of one call of a graph that holds ``calls`` of them."""
    return Spread(spread.median / calls, spread.p20 / calls, spread.p80 / calls, spread.n)
