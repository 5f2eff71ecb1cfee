"""How many kernels a call launches and how long they take together, by torch.profiler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fastgan.benchmarks.measure import Call, synchronize


def count_launches(calls: Sequence[Call], device: torch.device) -> tuple[float, float]:
    """Return (sum of kernel time in microseconds, launches) of one call; copies and fills count as kernels."""
    from torch.profiler import ProfilerActivity, profile

    for call in calls:
        call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for call in calls:
            call()
        synchronize(device)
    return add_up(trace.events() or (), len(calls))


def add_up(events: Iterable[Any], calls: int) -> tuple[float, float]:
    """Sum up what ran on the device; ranges that users name are drawn there as well, but are no work."""
    on_device = torch.profiler.DeviceType.CUDA
    work = [event for event in events if event.device_type == on_device and not event.is_user_annotation]
    work = [event for event in work if getattr(event, "activity_type", None) not in ("cuda_sync", "overhead")]
    return sum(event.time_range.elapsed_us() for event in work) / calls, len(work) / calls
