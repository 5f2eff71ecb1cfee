"""How many kernels a call launches and how long they take together, by torch.profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fastgan.benchmarks.measure import Call, synchronize

NAMED = 24  # kernels of a step that are told apart, the slowest
LONGEST = 120  # of a name


def count_launches(calls: Sequence[Call], device: torch.device) -> tuple[float, float]:
    """Return (sum of kernel time in microseconds, launches) of one call; copies and fills count as kernels."""
    return add_up(profiled(calls, device), len(calls))


def profiled(calls: Sequence[Call], device: torch.device) -> Sequence[Any]:
    """Return what torch.profiler has seen of the calls, each made once."""
    from torch.profiler import ProfilerActivity, profile

    for call in calls:
        call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for call in calls:
            call()
        synchronize(device)
    return trace.events() or ()


def worked(events: Iterable[Any]) -> list[Any]:
    """Return what ran on the device; ranges that users name are drawn there as well, but are no work."""
    on_device = torch.profiler.DeviceType.CUDA
    work = [event for event in events if event.device_type == on_device and not event.is_user_annotation]
    return [event for event in work if getattr(event, "activity_type", None) not in ("cuda_sync", "overhead")]


def by_name(events: Iterable[Any], calls: int) -> dict[str, float]:
    """Return microseconds of a call by the kernel's name, the slowest first; those that matter least as ``others``."""
    sums: dict[str, float] = defaultdict(float)
    for event in worked(events):
        sums[event.name[:LONGEST]] += event.time_range.elapsed_us() / calls
    ordered = sorted(sums.items(), key=lambda entry: -entry[1])
    named: dict[str, float] = dict(ordered[:NAMED])
    if rest := sum(us for _, us in ordered[NAMED:]):
        named["others"] = rest
    return named


def add_up(events: Iterable[Any], calls: int) -> tuple[float, float]:
    """Return the sum of kernel time and the launches of a call."""
    work = worked(events)
    return sum(event.time_range.elapsed_us() for event in work) / calls, len(work) / calls
