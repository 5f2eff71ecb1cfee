"""Profiles a trainer's steps by layer and phase: under torch.profiler, then once more to count what they launch.

The trainer makes true steps, the same to the bit as without a profiler: some to warm up, some by the host's clock
alone, some under the profiler, one of each pattern counted, and on a GPU some replays of the captured graph, which
knows no ranges: layers are told apart where steps run eagerly.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastgan.benchmarks import profile_rates, profile_trace
from fastgan.benchmarks.measure import collector_off, synchronize
from fastgan.benchmarks.profile_count import Counts, counting
from fastgan.benchmarks.profile_ranges import OURS, Ranges
from fastgan.benchmarks.profile_trace import Piece
from fastgan.benchmarks.record import Ceilings

if TYPE_CHECKING:
    from fastgan.train import Trainer
    from fastgan.train.step import Pattern

WARM_UP = 2
QUIET = 25  # percent: what else the machine does makes the host slower, never faster
LEAST, MOST, SECONDS = 3, 30, 4.0  # steps, where nobody says how many: as many as take so long


@dataclass
class Profile:
    """What some steps did, step by step, and what of it was counted."""

    device: torch.device
    steps: int
    pieces: list[Piece]  # on the host, or the device's kernels; without the profiler's own work
    kinds: list[tuple[list[int], float]]  # the steps of each pattern, and how often a step is one
    counts: list[tuple[Counts, float]]  # of each pattern that was met, and how often a step is one
    rates: Ceilings
    plain_us: float  # a step by the host's clock, nobody looking
    profiled_us: float  # the same under the profiler
    own_us: float  # of it the profiler's own work in our ranges
    replay: dict[str, float] = field(default_factory=dict)  # on a GPU: a replayed step: wall, kernels, gaps, launches
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether pieces are kernels of a GPU, not moments of the host."""
        return self.device.type == "cuda"


def profile(trainer: Trainer, trace: Path, steps: int | None = None) -> Profile:
    """Profile steps of a trainer and write the Chrome trace of them to a file.

    The trainer goes on by all steps that are made. ``steps``: under the profiler; None: a few, by how long they take.
    """
    device = trainer.device
    ranges = Ranges(device, emits=True)
    with running(trainer):
        advance(trainer, WARM_UP)
        counts: dict[Pattern, Counts] = {}
        counted(trainer, [trainer._iterate.pattern(trainer.step)], counts)
        dtypes = {
            dtype for found in counts.values() for own in found.values() for dtype, flops, _ in own.pieces if flops
        }
        rates = profile_rates.measure(device, dtypes)
        with collector_off():
            one_us = min(timed(trainer), timed(trainer))
            steps = steps or min(MOST, max(LEAST, int(SECONDS * 1e6 / one_us)))
            plain_us = float(np.percentile([timed(trainer) for _ in range(steps)], QUIET))
        with ranges.installed(trainer):
            if device.type == "cuda":
                with recorded(device):  # the profiler's own beginnings
                    advance(trainer, 1, ranges)
            with collector_off(), recorded(device) as record:
                begun = time.perf_counter_ns()
                patterns = advance(trainer, steps, ranges)
                synchronize(device)
                profiled_us = (time.perf_counter_ns() - begun) / 1e3 / steps
        record.export_chrome_trace(str(trace))
        found = profile_trace.events(trace)
        counted(trainer, patterns, counts)
        replay = replayed(trainer, steps, trace.with_suffix(".replay")) if device.type == "cuda" else {}
        rates = profile_rates.measure(device, dtypes, rates)
    ours = profile_trace.spans(found, ranges.known)
    host = profile_trace.on_host(ours)
    pieces = profile_trace.on_device(found, ours) if device.type == "cuda" else host
    kinds = [
        ([step for step, own in enumerate(patterns) if own == pattern], times / steps)
        for pattern, times in Counter(patterns).items()
    ]
    own_us = usual((piece for piece in host if piece.range is OURS), kinds, every=False)
    if device.type != "cuda":
        profiled_us = usual(host, kinds, every=False)
    kept = [piece for piece in pieces if piece.range is not OURS]
    often = [(counts[pattern], times / steps) for pattern, times in Counter(patterns).items()]
    return Profile(device, steps, kept, kinds, often, rates, plain_us, profiled_us, own_us, replay, dict(ranges.fused))


def usual(pieces: Iterable[Piece], kinds: Sequence[tuple[Sequence[int], float]], every: bool) -> float:
    """Return what pieces take in a step, by how often each kind of step is made.

    ``every`` step counts alike; else a kind's is its quiet quarter's.
    """
    taken: defaultdict[int, float] = defaultdict(float)
    for piece in pieces:
        taken[piece.step] += piece.us
    total = 0.0
    for steps, often in kinds:
        own = [taken[step] for step in steps]
        total += often * float(np.mean(own) if every else np.percentile(own, QUIET))
    return total


@contextlib.contextmanager
def running(trainer: Trainer) -> Iterator[None]:
    """Context in which a trainer's steps may be made one by one: its random streams, its readers, its threads."""
    from fastgan.train import build, state

    state.refresh_shadows(trainer.players)
    with build.threads(trainer.config.threads), trainer._parts.stream.running(), trainer._draws.running():
        yield


def advance(trainer: Trainer, steps: int, ranges: Ranges | None = None) -> list[Pattern]:
    """Make the next steps as ``fit`` would, one kernel at a time; return their patterns."""
    return [make(trainer, trainer._iterate.pattern(trainer.step), ranges) for _ in range(steps)]


def make(trainer: Trainer, pattern: Pattern, ranges: Ranges | None = None) -> Pattern:
    """Make one step of that pattern."""
    with trainer._draws.ready(1), ranges.step() if ranges is not None else contextlib.nullcontext():
        trainer._iterate(pattern)
    passed(trainer, 1)
    return pattern


def passed(trainer: Trainer, steps: int) -> None:
    """Count steps that were made."""
    trainer.step += steps
    trainer.images += steps * trainer.config.n_critic * trainer.config.batch_size


def timed(trainer: Trainer) -> float:
    """Make a step by the host's clock alone; return microseconds."""
    synchronize(trainer.device)
    begun = time.perf_counter_ns()
    advance(trainer, 1)
    synchronize(trainer.device)
    return (time.perf_counter_ns() - begun) / 1e3


@contextlib.contextmanager
def recorded(device: torch.device) -> Iterator[Any]:
    """Context of torch.profiler, everything done before it ends."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on stderr that it starts and stops
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events.*")
        with profiler(activities=activities) as record:
            yield record
            synchronize(device)


def counted(trainer: Trainer, patterns: Iterable[Pattern], counts: dict[Pattern, Counts]) -> None:
    """Make one step of each pattern that was not counted yet, and count it."""
    optimizers = {
        f"{side[0].upper()}'s optimiser": getattr(trainer.players, f"{side}_optimizer")
        for side in ("generator", "discriminator")
    }
    for pattern in dict.fromkeys(patterns):
        if pattern not in counts:
            ranges = Ranges(trainer.device, emits=False)
            with ranges.installed(trainer), counting(ranges, optimizers) as counts[pattern]:
                make(trainer, pattern, ranges)


def replayed(trainer: Trainer, steps: int, trace: Path) -> dict[str, float]:
    """Make single steps as ``fit`` does, by graph or launch: host wall, kernel time, gaps and launches of one."""
    from fastgan.train.replays import Eagerly

    if isinstance(trainer._run, Eagerly):
        return {}

    def go() -> None:
        for _ in range(steps):
            with trainer._draws.ready(1):
                trainer._run((trainer._iterate.pattern(trainer.step),))
            passed(trainer, 1)
        synchronize(trainer.device)

    go()  # captured now
    begun = time.perf_counter_ns()
    go()
    wall = (time.perf_counter_ns() - begun) / 1e3 / steps
    with recorded(trainer.device) as record:
        go()
    try:
        record.export_chrome_trace(str(trace))
        kernel_us, launches = profile_trace.kernels(profile_trace.events(trace))
    finally:
        trace.unlink(missing_ok=True)
    return {
        "wall_us": wall,
        "kernel_us": kernel_us / steps,
        "gaps_us": max(0.0, wall - kernel_us / steps),
        "launches": launches / steps,
    }
