"""A workload and its contenders: check them, then time those that are right, in turns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.benchmarks import gate
from fastgan.benchmarks.launches import add_up, by_name, profiled
from fastgan.benchmarks.measure import (
    MOST_QUEUED,
    Call,
    DeviceClock,
    WallClock,
    graph_of,
    interleave,
    scaled,
    synchronize,
)
from fastgan.benchmarks.record import Check, Timed, said
from fastgan.benchmarks.setting import Setting

MOST_COPIES = 256

Contender = Callable[..., object]  # of a workload's inputs; returns a tensor or a tuple of them


@dataclass(frozen=True)
class Workload:
    """What is to be done, by whom, and how one knows that it was done."""

    name: str
    shape: str
    dtype: str  # as the ceilings name it: bfloat16, float16, tf32, float32
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]  # random, never zeros
    contenders: Mapping[str, Contender]  # the first is the baseline
    reference: Contender  # of the inputs in fp64
    flops: float | None = None
    moved: float | None = None  # bytes read and written, each once
    resident: bool = False  # time it on the same inputs again and again, from the L2 where they fit
    ulp: float | None = None  # of the arithmetic, where it is coarser than the dtype's
    host_only: bool = False  # the host's time is all that matters


def race(workload: Workload, setting: Setting) -> list[Timed]:
    """Return one row for each contender; one that fails its check has no times."""
    inputs = workload.inputs(setting.generator())
    checks = check_all(workload, inputs)
    baseline = next(iter(workload.contenders))
    rows = {
        name: Timed(workload.name, name, workload.shape, workload.dtype, checked, baseline)
        for name, checked in checks.items()
    }
    right = [name for name, checked in checks.items() if checked.passed]
    if right:
        copies, l2 = spread_out(inputs, setting, workload.resident)
        calls = {name: [functools.partial(workload.contenders[name], *copy) for copy in copies] for name in right}
        timed = {name: rows[name] for name in right}
        time_wall(timed, calls, setting)
        if not workload.host_only:
            time_device(timed, calls, setting)
            time_replay(timed, calls, setting)
        for name in right:
            rows[name].peak_bytes = peak_memory(calls[name][0], setting.device) if setting.on_gpu else None
            rows[name].l2 = l2
            rate(rows[name], workload, setting)
    return list(rows.values())


def check_all(workload: Workload, inputs: tuple[Tensor, ...]) -> dict[str, Check]:
    """Check the baseline against the reference, then each other contender against both."""
    reference = workload.reference(*(in_fp64(tensor) for tensor in inputs))
    (first, baseline), *others = workload.contenders.items()
    base = verdict_of(baseline, inputs, functools.partial(gate.check_baseline, reference=reference, ulp=workload.ulp))
    if not base.passed:
        return {first: base} | {name: Check(False, why="its baseline failed") for name, _ in others}
    judge = functools.partial(gate.check, baseline=baseline(*fresh(inputs)), reference=reference, ulp=workload.ulp)
    return {first: base} | {name: verdict_of(contender, inputs, judge) for name, contender in others}


def verdict_of(contender: Contender, inputs: tuple[Tensor, ...], judge: Callable[[object], Check]) -> Check:
    """Judge a contender twice, as it will be timed and with its outputs poisoned; an exception is a verdict as well."""
    try:
        plain = contender(*fresh(inputs))
        with gate.Poisoned():
            poisoned = contender(*fresh(inputs))
        return worse(judge(plain), judge(poisoned))
    except Exception as error:
        return Check(False, why=said(error))


def worse(first: Check, second: Check) -> Check:
    """Return the verdict that says more against the contender."""
    if first.passed != second.passed:
        return second if first.passed else first
    return max(first, second, key=lambda verdict: verdict.error or 0.0)


def time_wall(rows: Mapping[str, Timed], calls: Mapping[str, Sequence[Call]], setting: Setting) -> None:
    """Fill in the time by the host's clock."""
    for name, spread in interleave(calls, WallClock(setting.device), setting.effort).items():
        rows[name].wall_us = spread


def time_device(
    rows: Mapping[str, Timed], calls: Mapping[str, Sequence[Call]], setting: Setting, parts: bool = False
) -> None:
    """Fill in, on a GPU, the time by events, the sum of kernel time, by kernel where ``parts`` ask so, and launches."""
    if not setting.on_gpu or not rows:
        return
    for name, row in rows.items():
        events = profiled(calls[name], setting.device)
        kernel_us, launches = add_up(events, len(calls[name]))
        if launches:  # a profiler that sees nothing has measured nothing
            row.kernel_us, row.launches = kernel_us, launches
            row.parts = by_name(events, len(calls[name])) if parts else None
    most = max(1, int(MOST_QUEUED / max(row.launches or 1.0 for row in rows.values())))
    for name, spread in interleave(calls, DeviceClock(setting.device), setting.effort, most).items():
        rows[name].device_us = spread


def time_replay(rows: Mapping[str, Timed], calls: Mapping[str, Sequence[Call]], setting: Setting) -> None:
    """Fill in, on a GPU, the time of a graph's replay; a call that cannot be captured says so in its note."""
    if not setting.on_gpu:
        return
    replays: dict[str, list[Call]] = {}
    for name, row in rows.items():
        try:
            replays[name] = [graph_of(calls[name], setting.device).replay]
        except Exception as error:  # it synchronises, or allocates what a capture may not
            row.note = f"cannot be captured: {said(error)}"
            synchronize(setting.device)
    for name, spread in interleave(replays, DeviceClock(setting.device), setting.effort, MOST_QUEUED).items():
        rows[name].graph_us = scaled(spread, len(calls[name]))


def peak_memory(call: Call, device: torch.device) -> int:
    """Return the device memory that a call takes above what was taken before it."""
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def rate(row: Timed, workload: Workload, setting: Setting) -> None:
    """Turn a row's best time into rates and a share of the roofline."""
    if row.best is None:
        return
    microseconds = row.best.median
    if workload.flops:
        row.tflops = workload.flops / microseconds / 1e6
    if workload.moved:
        row.gbs = workload.moved / microseconds / 1e3
    floor = setting.ceilings.floor_us(workload.dtype, workload.flops, workload.moved)
    row.roofline = None if floor is None else floor / microseconds


def spread_out(inputs: tuple[Tensor, ...], setting: Setting, resident: bool) -> tuple[list[tuple[Tensor, ...]], str]:
    """Return copies of the inputs that together exceed the L2 cache thrice, and what a reader may assume of it."""
    if resident or not setting.on_gpu:
        return [fresh(inputs)], "resident"
    size = max(1, sum(tensor.numel() * tensor.element_size() for tensor in inputs))
    cache = torch.cuda.get_device_properties(setting.device).L2_cache_size
    room = torch.cuda.mem_get_info(setting.device)[0] // 4
    copies = max(1, min(math.ceil(3 * cache / size), MOST_COPIES, room // size))
    return [fresh(inputs) for _ in range(copies)], "rotated" if copies * size >= 2 * cache else "resident"


def fresh(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Clone inputs, strides and ``requires_grad`` kept."""
    return tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)


def in_fp64(tensor: Tensor) -> Tensor:
    """Return a leaf in fp64; integers stay as they are."""
    wide = tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()
    return wide.requires_grad_(tensor.requires_grad)
