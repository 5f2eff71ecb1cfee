"""Suite ``ladder``: whole training steps in PyTorch at its best; the fastest of rungs 2 to 5 is the one to beat.

A rung is checked before it is timed: from the same weights, on the same inputs, the losses of its first steps and the
way that its weights went are those of rung 1, within the rounding of its precision. Capturing warms up, which trains:
weights, buffers and optimiser state are put back before the check. A rung that cannot be climbed says why:
torch.compile has no second derivative, and a batch of fakes that serves both updates has been seen to fail behind it.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.benchmarks.gate import tensors
from fastgan.benchmarks.measure import Call, graph_of
from fastgan.benchmarks.race import time_device, time_wall
from fastgan.benchmarks.record import Check, Row, Timed, said
from fastgan.benchmarks.rungs import Rung, TrainingStep, our_precision, rungs
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.step_rates import rate
from fastgan.benchmarks.step_workloads import Workload, workloads
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError, unknown

Build = Callable[[Rung], TrainingStep]
CHECKED_STEPS = 3
UPPER = ("2", "3", "4", "5")  # how their names begin
TOLERANCE = {"bfloat16": 5e-2, "float16": 2e-2, "float32": 2e-3}  # of the losses, relative to 1 at least


@dataclass
class Trace:
    """The first steps of a training: (steps, losses), and how far each network's weights went (2-norm)."""

    losses: Tensor
    moved: Tensor


def arguments(parser: ArgumentParser) -> None:
    """Add the ladder's own options."""
    parser.add_argument("--rung", type=int, nargs="+", choices=range(1, 6), help="only these rungs (and 1)")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each training step and batch; the published batches come first."""
    plan = []
    for workload, batch in chosen(setting, few=setting.smoke):
        plan.append(
            Task(
                f"{workload.name} batch {batch}",
                functools.partial(rated, setting, workload, batch),
                priority(workload, batch),
            )
        )
    return plan


def chosen(setting: Setting, few: bool = False, others: Sequence[str] = ()) -> Iterator[tuple[Workload, int]]:
    """Yield what the options ask for; ``few``: one alone where they ask for nothing; ``others`` are known as well."""
    options = vars(setting.options)
    known = {workload.name: workload for workload in workloads(setting.smoke)}
    for name in options.get("workload") or ():
        if name not in known and name not in others:
            raise unknown("workload", name, [*known, *others])
    if any(batch < 2 for batch in options.get("batch") or ()):
        raise UserError("--batch must be at least 2: a batch norm has no variance of one sample")
    for name in options.get("workload") or list(known)[: 1 if few else None]:
        if name in known:
            for batch in options.get("batch") or ((8,) if setting.smoke else known[name].batches):
                yield known[name], batch


def priority(workload: Workload, batch: int) -> int:
    """Return the rank of a batch: the published one first."""
    return 2 * (batch != workload.batch)


def rated(setting: Setting, workload: Workload, batch: int) -> Iterator[Row]:
    """Climb, and add rates."""
    rows = [*climb(setting, workload.name, f"batch {batch}", functools.partial(workload.baseline, batch=batch))]
    rate([row for row in rows if isinstance(row, Timed) and row.best], workload, batch, setting)
    yield from rows


def climb(setting: Setting, workload: str, shape: str, build: Build) -> Iterator[Row]:
    """Check a training step on each rung, then time those that are right; yields one row for each rung."""
    ladder = rungs(setting.device, our_precision(setting.device))
    rows = {rung.name: Timed(workload, rung.name, shape, rung.dtype, baseline=ladder[0].name) for rung in ladder}
    calls: dict[str, list[Call]] = {}
    eager: Trace | None = None
    benchmark = torch.backends.cudnn.benchmark
    for rung in ladder:
        row = rows[rung.name]
        row.note = obstacle(rung, setting, eager)
        if row.note is None:
            try:
                call, trace, row.peak_bytes = prepare(rung, build, setting.seed)
                eager = eager or trace
                row.check = judge(trace, eager, TOLERANCE[rung.dtype])
                calls[rung.name] = [call]
            except Exception as error:
                row.note = f"not measured: {said(error)}"
                row.check = Check(False, why=said(error)) if eager is None else None
    right = {name: rows[name] for name in calls if rows[name].passed}
    time_rungs(right, {name: calls[name] for name in right}, setting)
    torch.backends.cudnn.benchmark = benchmark
    yield from rows.values()


def obstacle(rung: Rung, setting: Setting, eager: Trace | None) -> str | None:
    """Return why a rung is not to be climbed now; None where it is."""
    asked = getattr(setting.options, "rung", None) or range(1, 6)
    if rung.obstacle:
        return f"not measured: {rung.obstacle}"
    if rung.number > 1 and rung.number not in asked:
        return "not measured: not asked for"
    if rung.number > 1 and eager is None:
        return "not measured: rung 1 failed, so there is nothing to check against"
    return None


def time_rungs(rows: dict[str, Timed], calls: dict[str, list[Call]], setting: Setting) -> None:
    """Time rungs in turns; the call of a captured one is a replay already."""
    time_wall(rows, calls, setting)
    time_device(rows, calls, setting, parts=True)
    for rung in rungs(setting.device, None):
        if rung.captured and rung.name in rows:
            rows[rung.name].graph_us, rows[rung.name].device_us = rows[rung.name].device_us, None
    for row in rows.values():
        row.l2 = "resident"


def prepare(rung: Rung, build: Build, seed: int) -> tuple[Call, Trace, int | None]:
    """Build the step on a rung. Returns what is to be timed, the trace of its first steps, and its device memory."""
    on_gpu = rung.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(rung.device)
    before = torch.cuda.memory_allocated(rung.device) if on_gpu else 0
    with torch.random.fork_rng([rung.device] if on_gpu else []):
        torch.manual_seed(seed)
        step = build(rung)
    begin = [[tensor.detach().clone() for tensor in state(network)] for network in step.networks]
    call: Callable[[], object] = as_called(rung, step)
    losses: list[Tensor] = []
    if rung.captured:
        call, losses = capture(as_called(rung, step), rung.device)
        restore(step, begin)
    seen = []
    for _ in range(CHECKED_STEPS):
        latest = call()
        seen.append(torch.stack([loss.detach().double().cpu() for loss in losses or tensors(latest)]))
    moved = [distance(network, saved) for network, saved in zip(step.networks, begin, strict=True)]
    peak = torch.cuda.max_memory_allocated(rung.device) - before if on_gpu else None
    return call, Trace(torch.stack(seen), torch.stack(moved)), peak


def as_called(rung: Rung, step: TrainingStep) -> Callable[[], tuple[Tensor, ...]]:
    """Return the step under the rung's global settings."""

    def call() -> tuple[Tensor, ...]:
        torch.backends.cudnn.benchmark = rung.tuned
        if rung.compile_mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        return step.run()

    return call


def capture(once: Callable[[], tuple[Tensor, ...]], device: torch.device) -> tuple[Call, list[Tensor]]:
    """Capture one step in a CUDA graph. Returns its replay, and the losses that each replay overwrites."""
    losses: list[Tensor] = []

    def call() -> None:
        losses[:] = once()

    return graph_of([call], device).replay, losses


def state(network: torch.nn.Module) -> list[Tensor]:
    """Return a network's parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


@torch.no_grad()
def restore(step: TrainingStep, begin: Sequence[Sequence[Tensor]]) -> None:
    """Put weights and buffers back, and the optimisers' state to zero, where Adam, RMSProp and momentum begin."""
    for network, saved in zip(step.networks, begin, strict=True):
        for tensor, value in zip(state(network), saved, strict=True):
            tensor.copy_(value)
    for optimizer in step.optimizers:
        for slots in optimizer.state.values():
            for value in slots.values():
                if isinstance(value, Tensor):
                    value.zero_()


@torch.no_grad()
def distance(network: torch.nn.Module, begin: Sequence[Tensor]) -> Tensor:
    """Return how far a network's parameters went from where they began."""
    pairs = zip(network.parameters(), begin, strict=False)  # buffers follow the parameters there
    return torch.stack([(now.double() - before.double()).square().sum() for now, before in pairs]).sum().sqrt().cpu()


def judge(trace: Trace, eager: Trace, tolerance: float) -> Check:
    """Compare the first steps with rung 1's: losses within ``tolerance``, weights moved as far to within a half."""
    if not bool(torch.isfinite(trace.losses).all()):
        return Check(False, why="the losses are not finite")
    error = float(((trace.losses - eager.losses).abs() / eager.losses.abs().clamp(min=1.0)).max())
    if error > tolerance:
        return Check(False, error, tolerance, f"losses differ from rung 1's by {error:.1e}")
    if bool(((trace.moved - eager.moved).abs() > 0.5 * eager.moved).any()):
        return Check(False, error, tolerance, "the weights did not move as rung 1's did")
    return Check(True, error, tolerance)


def best(rows: Sequence[Timed]) -> Timed | None:
    """Return the fastest of rungs 2 to 5 by the wall, of those that passed and were measured."""
    climbed = [row for row in rows if row.passed and row.wall_us is not None and row.variant[:1] in UPPER]
    return min(climbed, key=lambda row: row.wall_us.median if row.wall_us else float("inf"), default=None)


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Name the rung to beat of each workload."""
    timed = [row for row in rows if isinstance(row, Timed)]
    for workload, shape in dict.fromkeys((row.workload, row.shape) for row in timed):
        winner = best([row for row in timed if (row.workload, row.shape) == (workload, shape)])
        if winner is not None and winner.wall_us is not None:
            time = f"{winner.wall_us.median:.1f} us a step"
            yield f"to beat, {workload} {shape}: {time} ({winner.variant}, {winner.dtype})"


SUITE = Suite(
    "ladder",
    "whole training steps in PyTorch, eager to compiled and captured: minutes a rung, the compilations are kept",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
