"""What shares of the roofline are counted from: matrix rates, copy bandwidth and the cost of a launch, measured now."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastgan.benchmarks import ceilings
from fastgan.benchmarks.record import Ceilings, Row, Timed
from fastgan.benchmarks.setting import Setting

SECONDS = 6.0  # for all of them


def measure(device: torch.device, dtypes: Iterable[str], before: Ceilings | None = None) -> Ceilings:
    """Measure the device's rates for those dtypes, as the ceilings name them; others have none.

    Each is that of the faster samples, and what was measured ``before`` where that was more: who else uses the machine
    makes it slower, never faster.
    """
    setting = Setting(device, budget=SECONDS)
    rows: list[Row] = [*ceilings.copy(setting), *ceilings.launch(setting)]
    for dtype in sorted({*dtypes} & {*ceilings.MATRIX}):
        rows += ceilings.matrix(setting, dtype)
    found = Ceilings() if before is None else before
    for row in rows:
        if not isinstance(row, Timed) or row.best is None:
            continue
        if row.workload == "launch":
            found.launch_us[row.variant] = min(row.best.p20, found.launch_us.get(row.variant, float("inf")))
            continue
        faster = row.best.median / row.best.p20
        if row.workload == "copy" and row.gbs is not None:
            found.copy_gbs = max(row.gbs * faster, found.copy_gbs or 0.0)
        elif row.tflops is not None:
            found.tflops[row.dtype] = max(row.tflops * faster, found.tflops.get(row.dtype, 0.0))
    return found


def floor_us(rates: Ceilings, dtype: str, flops: float, moved: float) -> tuple[float, str]:
    """Return the shortest time for a launch, and what it is bound by: the matrix rate or the bandwidth.

    A dtype whose rate was not measured is bound by the bandwidth alone.
    """
    rate = rates.tflops.get(dtype)
    multiplied = flops / rate / 1e6 if flops and rate else 0.0
    copied = moved / rates.copy_gbs / 1e3 if rates.copy_gbs else 0.0
    return max((multiplied, "matrix rate"), (copied, "copy bandwidth"))
