"""A profile as people read it: phases, layers, what a step costs, and the largest losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastgan.benchmarks.profile_rows import Report, Row, duration
from fastgan.benchmarks.table import NOTHING, number, table

MOST_ROWS = 24
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
MOST_WHY = 60
BUSY = 1.5

NUMBERS: dict[str, Callable[[Row], str]] = {
    "us": lambda row: number(row.us),
    "share": lambda row: f"{row.share:.1%}",
    "launches": lambda row: number(row.launches) if row.launches else NOTHING,
    "FLOPs": lambda row: scaled(row.flops),
    "bytes": lambda row: scaled(row.bytes),
    "roofline": lambda row: NOTHING if row.roofline is None else f"{row.roofline:.0%}",
    "bound": lambda row: row.bound if row.roofline is not None else NOTHING,
    "backend": lambda row: row.backend,
}
BY_PHASE: dict[str, Callable[[Row], str]] = {"phase": lambda row: row.phase, **NUMBERS}
BY_LAYER: dict[str, Callable[[Row], str]] = {
    "layer": lambda row: row.layer or row.phase,
    "direction": lambda row: row.what,
    **NUMBERS,
    "why": lambda row: row.why if len(row.why) <= MOST_WHY else f"{row.why[: MOST_WHY - 3]}...",
}


def render(report: Report) -> Iterator[str]:
    """Yield the lines of a report."""
    profile = report.profile
    yield "by phase"
    yield table(BY_PHASE, report.phases)
    yield ""
    left = len(report.layers) - MOST_ROWS
    yield "by layer" + (f" (the longest {MOST_ROWS}; profile.json has {left} more)" if left > 0 else "")
    yield table(BY_LAYER, report.layers[:MOST_ROWS])
    yield ""
    yield from cost(report)
    yield f"rates, measured in this run: {', '.join(rates(report))}"
    if profile.fused and any(profile.fused.values()):
        yield f"fused: {'; '.join(fused(report))}"
    yield "largest losses"
    yield from (f"  {at}. {line}" for at, line in enumerate(report.losses, start=1))


def cost(report: Report) -> Iterator[str]:
    """Yield what a step takes, by each clock there is."""
    profile = report.profile
    if not profile.on_gpu:
        slower = profile.profiled_us / profile.plain_us if profile.plain_us else 1.0
        yield (
            f"step, host: {duration(report.total_us)} above, {duration(profile.plain_us)} without the profiler,"
            f" {duration(profile.profiled_us)} with it ({slower:.2f} times)"
        )
        if profile.plain_us > BUSY * report.total_us:
            yield "this machine is busy: whole steps take far longer than their parts do when nothing gets in between"
        return
    yield (
        f"step, eager: kernels {duration(report.total_us)}, host {duration(profile.plain_us)} without the"
        f" profiler, {duration(profile.profiled_us)} with it"
    )
    if profile.replay:
        replay = profile.replay
        yield (
            f"step, graph replay: host {duration(replay['wall_us'])}, kernels {duration(replay['kernel_us'])}"
            f" in {replay['launches']:.0f} launches, gaps {duration(replay['gaps_us'])}"
        )
    else:
        yield "step, graph replay: none, graph=false"


def rates(report: Report) -> Iterator[str]:
    """Yield the rates that shares are counted from."""
    measured = report.profile.rates
    yield from (f"{rate:.3g} TFLOP/s {dtype}" for dtype, rate in measured.tflops.items())
    if measured.copy_gbs is not None:
        yield f"{measured.copy_gbs:.3g} GB/s copied"
    if "eager" in measured.launch_us:
        yield f"{measured.launch_us['eager']:.3g} us a launch"


def fused(report: Report) -> Iterator[str]:
    """Yield the layers that take others in."""
    for layer, members in report.profile.fused.items():
        if members:
            yield f"{layer} + {', '.join(members)}"


def scaled(value: float) -> str:
    """Format a large number with its unit."""
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return number(value) if value else NOTHING
