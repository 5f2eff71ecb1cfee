"""What shares of the roofline are counted from: matrix rates, copy bandwidth and the cost of a launch, measured now.

Suite ``ceilings`` measures the same, at length and checked; a profile needs a second of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from fastgan.benchmarks.ceilings import MATRIX, fp32_products
from fastgan.benchmarks.measure import Call, Clock, DeviceClock, WallClock
from fastgan.benchmarks.record import Ceilings

SAMPLES, SECONDS = 50, 0.5  # of each of them, or so long
CALLS, MANY = 2, 200  # in a sample; of what takes next to no time


def measure(device: torch.device, dtypes: Iterable[str], before: Ceilings | None = None) -> Ceilings:
    """Measure the device's rates for those dtypes, as the ceilings name them; others have none.

    Each is that of the fastest sample, and what was measured ``before`` where that was more: who else uses the machine
    makes it slower, never faster.
    """
    found = Ceilings() if before is None else before
    on_gpu = device.type == "cuda"
    clock: Clock = DeviceClock(device) if on_gpu else WallClock(device)
    random = torch.Generator(device).manual_seed(0)
    size = min(2**28, torch.cuda.mem_get_info(device)[0] // 32) if on_gpu else 2**23
    source = torch.randn(size, device=device, generator=random)
    target = torch.empty_like(source)
    us = best(lambda: target.copy_(source), clock)
    found.copy_gbs = max(8.0 * source.numel() / us / 1e3, found.copy_gbs or 0.0)
    side = 8192 if size >= 2 * 8192**2 else 512
    for dtype in sorted({*dtypes} & {*MATRIX}):
        a, b = (part.view(side, side).to(MATRIX[dtype]) for part in source[: 2 * side * side].chunk(2))
        with fp32_products("high" if dtype == "tf32" else "highest"):
            us = best(lambda a=a, b=b: torch.mm(a, b), clock)  # type: ignore[misc]
        found.tflops[dtype] = max(2.0 * side**3 / us / 1e6, found.tflops.get(dtype, 0.0))
    one, other = source[:1], target[:1]
    us = best(lambda: torch.add(one, 1, out=other), WallClock(device), MANY)
    found.launch_us["eager"] = min(us, found.launch_us.get("eager", us))
    return found


def best(call: Call, clock: Clock, calls: int = CALLS) -> float:
    """Return what a call takes in the fastest sample, in microseconds."""
    clock.sample([call])
    begun, least = time.monotonic(), float("inf")
    for _ in range(SAMPLES):
        least = min(least, clock.sample([call] * calls) / calls)
        if time.monotonic() - begun > SECONDS:
            break
    return least


def floor_us(rates: Ceilings, dtype: str, flops: float, moved: float) -> tuple[float, str]:
    """Return the shortest time for a launch, and what it is bound by: the matrix rate or the bandwidth.

    A dtype whose rate was not measured is bound by the bandwidth alone.
    """
    rate = rates.tflops.get(dtype)
    multiplied = flops / rate / 1e6 if flops and rate else 0.0
    copied = moved / rates.copy_gbs / 1e3 if rates.copy_gbs else 0.0
    return max((multiplied, "matrix rate"), (copied, "copy bandwidth"))
