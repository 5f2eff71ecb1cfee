"""Suite ``step``: whole training steps by the engine, against the five rungs of the ladder.

Everyone is checked before anyone is timed: from the same weights, on the same latents and real samples, the losses of
the first steps and the way that the weights went are those of rung 1, within the rounding of the precision. Of ours it
is the trainer's own step that is checked, on a GPU the captured one, with its draws taken from rung 1. What is timed
draws for itself, which the rungs need not: their inputs lie ready.
"""

from __future__ import annotations

import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgan.benchmarks import contenders, ladder, step_goals, step_overhead
from fastgan.benchmarks.measure import Call, WallClock, interleave, scaled, synchronize
from fastgan.benchmarks.record import Check, Row, Timed, said
from fastgan.benchmarks.rungs import Rung, TrainingStep, our_precision, rungs
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS
from fastgan.benchmarks.step_rates import rate
from fastgan.benchmarks.step_workloads import Workload
from fastgan.benchmarks.suites import Suite, Task

if TYPE_CHECKING:
    from fastgan.train import Trainer
    from fastgan.train.step import Step

PUBLISHED = {"as published": True, "as published, no .item()": False}
MOST_REPLAYS = 50  # that are queued while the host's clock runs
STRETCH = 200  # steps of a call of ``fit``


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each workload and batch; the published batches come first."""
    names = vars(setting.options).get("workload") or [step_goals.DIGITS]
    plan = []
    for workload, batch in ladder.chosen(setting, others=[step_goals.DIGITS]):
        measuring = functools.partial(measure, setting, workload, batch)
        plan.append(Task(f"{workload.name} batch {batch}", measuring, ladder.priority(workload, batch)))
    if step_goals.DIGITS in names and not setting.on_gpu:
        plan.append(Task(step_goals.DIGITS, functools.partial(step_overhead.measure, setting), 1))
    return plan


def measure(setting: Setting, workload: Workload, batch: int) -> Iterator[Row]:
    """Check and time one workload on each rung and by the engine; yields one row for each, and the host's."""
    precision = our_precision(setting.device)
    ways = rungs(setting.device, precision)
    shape, first = f"batch {batch}", ways[0].name
    rows = {rung.name: Timed(workload.name, rung.name, shape, rung.dtype, baseline=first) for rung in ways}
    rows |= {name: Timed(workload.name, name, shape, ways[-1].dtype, baseline=first) for name in OURS}
    if workload.published is not None:
        rows |= {name: Timed(workload.name, name, shape, ways[0].dtype, baseline=first) for name in PUBLISHED}
    calls: dict[str, list[Call]] = {}
    benchmark = torch.backends.cudnn.benchmark
    eager = climb(setting, ways, functools.partial(workload.baseline, batch=batch), rows, calls)
    torch.backends.cudnn.benchmark = benchmark  # ours as a trainer finds it
    if workload.published is not None and eager is not None:
        habits(setting, ways[0], functools.partial(workload.published, batch=batch), eager, rows, calls)
    for name in OURS:
        engine(setting, workload, batch, name, eager, rows[name], calls)
    right = {name: rows[name] for name in calls if rows[name].passed}
    calls = {name: calls[name] for name in right}
    ladder.time_rungs(right, calls, setting)
    ours = [rows[name] for name in OURS if name in right and setting.on_gpu]
    for row in ours:  # its call is a replay, as that of a captured rung
        row.graph_us, row.device_us = row.device_us, None
    torch.backends.cudnn.benchmark = benchmark
    rate(list(right.values()), workload, batch, setting)
    if not setting.on_gpu:
        for row in rows.values():
            row.note = "; ".join(filter(None, (row.note, "CPU")))
    yield from rows.values()
    if ours:
        yield from host(setting, rows, calls)
        yield through_fit(setting, workload, batch, ours[0].dtype)


def climb(
    setting: Setting,
    ways: Sequence[Rung],
    build: Callable[[Rung], TrainingStep],
    rows: Mapping[str, Timed],
    calls: dict[str, list[Call]],
) -> ladder.Trace | None:
    """Check each rung; collect the calls to time, and return the trace of the first."""
    eager: ladder.Trace | None = None
    for rung in ways:
        row = rows[rung.name]
        row.note = ladder.obstacle(rung, setting, eager)
        if row.note is not None:
            continue
        try:
            call, trace, row.peak_bytes = ladder.prepare(rung, build, setting.seed)
            eager = eager or trace
            row.check = ladder.judge(trace, eager, ladder.TOLERANCE[rung.dtype])
            calls[rung.name] = [call]
        except Exception as error:  # torch.compile has no second derivatives
            row.note = f"not measured: {said(error)}"
            row.check = Check(False, why=said(error)) if eager is None else None
    return eager


def habits(
    setting: Setting,
    rung: Rung,
    build: Callable[..., TrainingStep],
    eager: ladder.Trace,
    rows: Mapping[str, Timed],
    calls: dict[str, list[Call]],
) -> None:
    """Check the published loop, with its ``.item()`` calls and without, on rung 1's latents; what is timed draws."""
    for name, items in PUBLISHED.items():
        try:
            _, trace, _ = ladder.prepare(rung, functools.partial(build, items=items, fixed=True), setting.seed)
            rows[name].check = ladder.judge(trace, eager, ladder.TOLERANCE[rung.dtype])
            call, _, rows[name].peak_bytes = ladder.prepare(rung, functools.partial(build, items=items), setting.seed)
            calls[name] = [call]
        except Exception as error:
            rows[name].check = Check(False, why=said(error))


def engine(
    setting: Setting,
    workload: Workload,
    batch: int,
    name: str,
    eager: ladder.Trace | None,
    row: Timed,
    calls: dict[str, list[Call]],
) -> None:
    """Check the engine on one backend, and collect its call."""
    from fastgan.ops.backend import backend

    why = "rung 1 failed, so there is nothing to check against" if eager is None else None
    if name == "fastgan triton":
        why = why or contenders.obstacle(setting, "linear_act", row.dtype)
    if why is not None or eager is None:
        row.note = f"not measured: {why}"
        return
    try:
        with backend(name.removeprefix("fastgan ")):
            row.check = ladder.judge(first_steps(setting, workload, batch), eager, ladder.TOLERANCE[row.dtype])
            call, row.peak_bytes = stepping(workload, batch, setting.device)
        calls[name] = [call]
    except Exception as error:
        row.check = Check(False, why=said(error))


def inside(trainer: Trainer) -> tuple[Step, Callable[..., None]]:
    """Return a trainer's step, and what runs iterations of it: on a GPU, replays of a graph."""
    return trainer._iterate, trainer._run


def first_steps(setting: Setting, workload: Workload, batch: int) -> ladder.Trace:
    """Return the trace of the engine's first steps, with rung 1's weights and inputs."""
    with torch.random.fork_rng([setting.device] if setting.on_gpu else []):
        torch.manual_seed(setting.seed)
        theirs = workload.baseline(rungs(setting.device, None)[0], batch)
    trainer = workload.trainer(batch, setting.device)
    networks = trainer.generator, trainer.discriminator
    for network, source in zip(networks, theirs.networks, strict=True):
        take_weights(network, source)
    begin = [[weight.detach().clone() for weight in network.parameters()] for network in networks]
    step, run = inside(trainer)
    step.draws = Given(theirs.inputs, workload.sample, trainer.config.z_dim, batch, step.bf16)
    if step.penalty is not None:
        lazy = step.penalty.lazy
        chosen = replace(lazy, penalty=between(theirs.inputs[2], lazy.penalty))
        step.penalty = replace(step.penalty, lazy=chosen)
    losses = []
    for done in range(ladder.CHECKED_STEPS):
        run((step.pattern(done),))
        seen = step.meter.read()
        loss_d, loss_g = (torch.tensor(seen[name], dtype=torch.float64) for name in ("loss_d", "loss_g"))
        losses.append(workload.losses(loss_d, loss_g))
    moved = [ladder.distance(network, saved) for network, saved in zip(networks, begin, strict=True)]
    return ladder.Trace(torch.stack(losses), torch.stack(moved))


@torch.no_grad()
def take_weights(network: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy weights and buffers of a network of other classes, whose members follow each other in the same order."""
    for own, theirs in zip(ladder.state(network), ladder.state(source), strict=True):
        own.copy_(theirs)


class Given:
    """Draws that return a baseline's inputs: latents and real samples, one after another where it has several."""

    def __init__(self, inputs: Sequence[Tensor], sample: tuple[int, ...], latent: int, batch: int, bf16: bool) -> None:
        dtype = torch.bfloat16 if bf16 else torch.float32
        self._z = inputs[0].reshape(-1, batch, latent).to(dtype)
        self._real = inputs[1].reshape(-1, batch, *sample).to(dtype)

    def real(self, at: int) -> Tensor:
        """Real samples ``at``."""
        return self._real[at % len(self._real)]

    def labelled(self, at: int) -> tuple[Tensor, Tensor]:
        """No baseline tells classes apart."""
        raise NotImplementedError("no baseline tells classes apart")

    def z(self, at: int) -> Tensor:
        """Latents ``at``."""
        return self._z[at % len(self._z)]

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        """The samples: a baseline has no noise."""
        return samples

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing: no checkpoint is written."""
        return {}, {}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing."""


def between(points: Tensor, penalty: Callable[..., Any]) -> Callable[..., Any]:
    """Return a penalty where the baseline takes it, update by update: between a point and itself is that point."""
    chosen = itertools.cycle(points)

    def call(critic: Callable[..., Tensor], real: Tensor, fake: Tensor) -> Any:
        alpha = next(chosen).reshape(-1, *[1] * (real.dim() - 1))
        mixed = alpha * real.float() + (1 - alpha) * fake.float()
        return penalty(critic, mixed, mixed)

    return call


def stepping(workload: Workload, batch: int, device: torch.device) -> tuple[Call, int | None]:
    """Return a call that does one iteration of a trainer of its own, and the device memory that it takes."""
    on_gpu = device.type == "cuda"
    gc.collect()  # graphs of the check free their memory now and not in between
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    trainer = workload.trainer(batch, device)
    step, run = inside(trainer)
    call = functools.partial(run, (step.pattern(1),))
    for _ in range(ladder.CHECKED_STEPS):
        call()
    synchronize(device)
    return call, torch.cuda.max_memory_allocated(device) - before if on_gpu else None


class HostClock:
    """The host's clock until it may go on, the device having been idle before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sample(self, batch: Sequence[Call]) -> float:
        """Return microseconds for the whole batch."""
        synchronize(self.device)
        start = time.perf_counter_ns()
        for call in batch:
            call()
        return (time.perf_counter_ns() - start) / 1e3


def host(setting: Setting, rows: Mapping[str, Timed], calls: Mapping[str, Sequence[Call]]) -> Iterator[Row]:
    """Time what a step costs the host where it is one replay."""
    captured = {name: calls[name] for name in calls if rows[name].graph_us is not None}
    clock = HostClock(setting.device)
    for name, spread in interleave(captured, clock, setting.effort, MOST_REPLAYS).items():
        row, note = rows[name], "the host's time alone: the device may go on"
        yield Timed(step_goals.host(row.workload), name, row.shape, row.dtype, row.check, wall_us=spread, note=note)
    synchronize(setting.device)


def through_fit(setting: Setting, workload: Workload, batch: int, dtype: str) -> Row:
    """Time a step of ``Trainer.fit``, progress bar, log and signals included."""
    steps = 5 if setting.smoke else STRETCH
    trainer = workload.trainer(batch, setting.device)

    def call() -> None:
        trainer.fit(trainer.step + steps, progress=False)

    spread = interleave({"fit": [call]}, WallClock(setting.device), setting.effort, 1)["fit"]
    note = f"Trainer.fit, {steps} steps a call"
    row = Timed(workload.name + step_goals.FIT, "fastgan auto", f"batch {batch}", dtype, Check(True))
    row.wall_us, row.note = scaled(spread, steps), note
    return row


SUITE = Suite(
    "step",
    "whole training steps by the engine, against PyTorch eager to compiled and captured",
    tasks,
    ladder.arguments,
    step_goals.closing,
    needs_ceilings=True,
)
