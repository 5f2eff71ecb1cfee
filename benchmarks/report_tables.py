"""Findings as Markdown tables. What was not measured reads so, and no speed-up stands beside a result that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from fastgan.benchmarks.findings import EAGER, Findings, clock_of, steps, works
from fastgan.benchmarks.record import Record, Spread, Timed
from fastgan.benchmarks.rungs import rungs
from fastgan.benchmarks.setting import choose_device
from fastgan.benchmarks.speedups import OURS, speedups
from fastgan.benchmarks.step import PUBLISHED
from fastgan.benchmarks.step_goals import host
from fastgan.benchmarks.table import number

NONE, WRONG = "not measured", "wrong"
RUNGS = [rung.name for rung in rungs(choose_device("cpu"), None)]
OPS = (
    *("conv", "linear", "loss", "optim", "norm-penalty", "interpolate", "diff-augment", "linear-act-stack"),
    *("sample-norms", "gained-act", "upfirdn2d"),
)
OTHERS = ("dropin", "host-overhead", "data", "feed")  # which race no rival of a kernel
MOST = 40  # works of a suite that are listed


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> Iterator[str]:
    """Yield a table; the first ``words`` columns are text."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * words + "---:|" * (len(heads) - words)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def us(spread: Spread | None) -> str:
    """Format a median."""
    return NONE if spread is None else f"{spread.median:,.0f}" if spread.median >= 100 else f"{spread.median:.3g}"


def wall(row: Timed | None) -> str:
    """Format a row's wall time, or say why it has none."""
    if row is not None and not row.passed:
        return WRONG
    return NONE if row is None else us(row.wall_us)


def times(other: Spread | None, own: Spread | None) -> str:
    """Format how many times faster ``own`` is; ``~``: noise may explain it."""
    if other is None or own is None:
        return NONE
    return f"{other.median / own.median:.2f}x" + ("" if other.differs(own) else " ~")


def wall_times(other: Timed | None, own: Timed | None) -> str:
    """The same of two rows' walls."""
    return times(other.wall_us if other else None, own.wall_us if own else None)


def races(mine: Findings | None) -> Iterator[str]:
    """Yield the table of whole steps: PyTorch's rungs, ours, and how many times faster."""
    heads = ["step", "batch", *RUNGS, *OURS, "over the best rung", "over eager"]
    rows = []
    for step in steps(mine):
        ours = step.row(OURS[0])
        cells = [wall(step.rows.get(name)) for name in (*RUNGS, *OURS)]
        ratios = [wall_times(step.best, ours), wall_times(step.row(EAGER), ours)]
        rows.append([f"`{step.workload}`", str(step.batch), *cells, *ratios])
    yield from table(heads, rows)


def details(mine: Findings) -> Iterator[str]:
    """Yield what was measured of ours, of the best rung and of the loops as they are published, beside the wall."""
    heads = ["step", "variant", "batch", "wall us (p20-p80)", "n", "host us", "replay us", "kernels us", "launches"]
    heads += ["TFLOP/s", "roofline", "peak MB", "error"]
    rows = []
    for step in (one for one in steps(mine) if one.published):
        shown = [step.row(EAGER), step.best, *(step.row(name) for name in (*PUBLISHED, *OURS))]
        for row in (one for one in shown if one is not None):
            alone = mine.rows.get((host(row.workload), row.variant, row.shape, row.dtype))
            rows.append([f"`{step.workload}`", row.variant, str(step.batch), *measures(row, alone)])
    if rows:
        yield from table(heads, rows)


def measures(row: Timed, alone: Timed | None) -> list[str]:
    """Return a row's figures; ``alone``: the host's time without the device's."""
    spread = row.wall_us
    span = f"{us(spread)} ({number(spread.p20)}-{number(spread.p80)})" if spread else NONE
    share = NONE if row.roofline is None else f"{row.roofline:.0%}"
    peak = NONE if row.peak_bytes is None else number(row.peak_bytes / 1e6)
    error = NONE if row.check is None or row.check.error is None else f"{row.check.error:.1e}"
    kernels, launches, rate = (number(value) or NONE for value in (row.kernel_us, row.launches, row.tflops))
    clocks = [wall(alone), us(row.graph_us)]
    return [span, str(spread.n) if spread else NONE, *clocks, kernels, launches, rate, share, peak, error]


def ops(mine: Findings | None) -> Iterator[str]:
    """Yield, for each suite of ops, how much faster ours are than the best other: geometric means by dtype."""
    heads = ["suite", "dtype", "works", *OURS, "worst of auto"]
    rows = []
    for suite in OPS:
        own = mine.of(suite) if mine else []
        by_variant = {name: list(speedups(own, name)) for name in OURS}
        dtypes = dict.fromkeys(entry.row.dtype for found in by_variant.values() for entry in found)
        for dtype in dtypes or ("",):
            found = {name: [entry for entry in by_variant[name] if entry.row.dtype == dtype] for name in OURS}
            means = [
                f"{geometric_mean([one.times for one in found[name]]):.2f}x" if found[name] else NONE for name in OURS
            ]
            worst = min(found[OURS[0]], key=lambda entry: entry.times, default=None)
            where = NONE if worst is None else f"{worst.times:.2f}x: {worst.row.workload}, {worst.row.shape}"
            rows.append([f"`{suite}`", dtype or NONE, str(len(found[OURS[0]])), *means, where])
    yield from table(heads, rows)


def mean_times(found: Sequence[float]) -> str:
    """Format a geometric mean."""
    return f"{geometric_mean(found):.2f}x" if found else NONE


def listing(mine: Findings, suite: str) -> Iterator[str]:
    """Yield the works of a suite, in its order of importance: each contender's time, and ours over the best other."""
    found = works(mine.of(suite))
    names = list(dict.fromkeys(variant for rows in found.values() for variant in rows))
    names = [name for name in names if name not in OURS] + [name for name in OURS if name in names]
    lines = []
    for (workload, shape, dtype), rows in list(found.items())[:MOST]:
        right = [row for row in rows.values() if row.passed and row.best]
        clock = clock_of(right)
        cells = [cell(rows.get(name), clock) for name in names]
        rivals = [row for row in right if row.variant not in OURS and getattr(row, clock)]
        best = min(rivals, key=lambda row: getattr(row, clock).median, default=None)
        own = rows.get(OURS[0])
        ratio = times(getattr(best, clock), getattr(own, clock)) if best and own and own.passed else NONE
        lines.append([workload, f"{shape}, {dtype}", *cells, clock.removesuffix("_us"), ratio])
    if lines:
        heads = ["work", "shape", *names, "clock", "over the best other"]
        cut = None if OURS[0] in names else -1  # nothing of ours races there
        yield from table(heads[:cut], [line[:cut] for line in lines])
        if len(found) > MOST:
            yield ""
            yield f"And {len(found) - MOST} more, in the records."


def cell(row: Timed | None, clock: str) -> str:
    """Return one contender's time."""
    if row is not None and not row.passed:
        return WRONG
    return us(getattr(row, clock, None))


def ceilings(mine: Findings | None) -> Iterator[str]:
    """Yield what the device can do at most, from which shares of the roofline are counted."""
    found = mine.ceilings if mine else None
    heads = ["copy GB/s", *(f"{name} TFLOP/s" for name in ("bfloat16", "float16", "tf32", "float32"))]
    heads += ["launch us", "graph node us", "graph replay us"]
    values = [found.copy_gbs if found else None]
    values += [found.tflops.get(name) if found else None for name in ("bfloat16", "float16", "tf32", "float32")]
    values += [found.launch_us.get(name) if found else None for name in ("eager", "graph_node", "graph_replay")]
    yield from table(heads, [[number(value) or NONE for value in values]], words=0)


def sources(mine: Findings) -> Iterator[str]:
    """Yield where the rows come from, a record a line."""
    heads = ["record", "suite", "date", "commit", "driver", "torch", "triton", "CUDA", "SM clock MHz", "deg C"]
    rows = []
    for name, record in mine.files:
        where = record.environment
        commit = f"{where['commit'][:10]}{' and changes' if where['dirty'] else ''}" if where["commit"] else NONE
        versions = [str(where[key] or NONE) for key in ("driver", "torch", "triton", "cuda")]
        last = record.sessions[-1] if record.sessions else {}
        state = [number(last.get(key)) or NONE for key in ("sm_clock_mhz", "temperature_c")]
        rows.append([f"`{name}`", f"`{record.suite}`", dates(record), commit, *versions, *state])
    yield from table(heads, rows, words=8)


def dates(record: Record) -> str:
    """Return the days on which a record was measured."""
    days = [str(session["date"])[:10] for session in record.sessions] or [str(record.environment["date"])[:10]]
    return " and ".join(dict.fromkeys(days))


def short(found: Sequence[Findings]) -> Iterator[str]:
    """Yield the README's table: published batches on the first GPU, in microseconds a step."""
    mine = next((one for one in found if one.device != "CPU"), None)
    rows = []
    for step in (one for one in steps(mine) if one.published):
        ours = step.row(OURS[0])
        cells = [wall(step.row(EAGER)), wall(step.best), wall(step.rows.get(OURS[0]))]
        rows.append([f"`{step.workload}`", str(step.batch), *cells, wall_times(step.best, ours)])
    where = mine.device if mine else "a GPU"
    yield f"Microseconds a training step on {where}, and how many times faster than the best that PyTorch offers:"
    yield ""
    yield from table(["step", "batch", "PyTorch eager", "PyTorch at its best", "fastgan", "speed-up"], rows)
