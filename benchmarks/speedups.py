"""How many times faster ours is than the best of the others, from the rows of a suite that races both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from fastgan.benchmarks.record import Row, Timed

OURS = ("fastgan auto", "fastgan triton")  # what a user gets, and our kernels alone
CLOCKS = ("graph_us", "device_us", "wall_us")  # the one nearest to the device first


@dataclass(frozen=True)
class Speedup:
    """One of ours beside the fastest other contender for the same work."""

    row: Timed
    rival: Timed
    times: float  # how many times faster; below 1: slower


def speedups(rows: Sequence[Row], ours: str) -> Iterator[Speedup]:
    """Yield one entry for each piece of work that ``ours`` and some other contender did rightly."""
    timed = [row for row in rows if isinstance(row, Timed) and row.passed and row.best is not None]
    for row in timed:
        same = (row.workload, row.shape, row.dtype)
        rivals = [
            Speedup(row, other, times)
            for other in timed
            if (other.workload, other.shape, other.dtype) == same and other.variant not in OURS
            if row.variant == ours and (times := ratio(other, row)) is not None
        ]
        if rivals:
            yield min(rivals, key=lambda entry: entry.times)


def ratio(other: Timed, row: Timed) -> float | None:
    """Return how many times faster ``row`` is, by the first clock that timed both."""
    for clock in CLOCKS:
        theirs, own = getattr(other, clock), getattr(row, clock)
        if theirs is not None and own is not None:
            return float(theirs.median / own.median)
    return None


def summary(label: str, found: Sequence[Speedup]) -> Iterator[str]:
    """Yield the geometric mean, of all and by dtype, and the worst shape."""
    if not found:
        return
    dtypes = dict.fromkeys(entry.row.dtype for entry in found)
    by_dtype = [
        f"{dtype} {geometric_mean([entry.times for entry in found if entry.row.dtype == dtype]):.2f}x"
        for dtype in dtypes
    ]
    mean = geometric_mean([entry.times for entry in found])
    worst = min(found, key=lambda entry: entry.times)
    where = f"{worst.row.workload} {worst.row.shape} {worst.row.dtype}, against {worst.rival.variant}"
    parts = f" ({', '.join(by_dtype)})" if len(dtypes) > 1 else ""
    yield f"{label}: {mean:.2f}x the best other over {len(found)} shapes{parts}; worst {worst.times:.2f}x: {where}"


def shares(rows: Sequence[Row], workload: str, least: int) -> Iterator[str]:
    """Yield what share of the run's own matrix rate ours reach on the square shapes of ``least`` rows or more."""
    timed = [row for row in rows if isinstance(row, Timed) and row.tflops is not None]
    rates = {row.workload: row.tflops for row in timed}
    for row in timed:
        rate, rows_of = rates.get(f"matrix {row.dtype}"), row.shape.partition("x")[0]
        if row.variant in OURS and row.workload.startswith(f"{workload} ") and int(rows_of) >= least and rate:
            share = (row.tflops or 0.0) / rate
            yield f"{row.workload}, {row.variant}: {share:.0%} of the measured matrix rate in {row.dtype}"
