"""What suite ``dropin`` is to reach on an H200, and what its rows say to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from fastgan.benchmarks.contenders import warned
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.step_goals import on_cpu, ratio_by_wall, verdict

BEFORE, AFTER, TRITON = "eager", "fastgan auto", "fastgan triton"
COMPILED, CAPTURED = ", compiled", ", captured"
LEAST = 1.0  # times as fast as before, of any model
MEAN = 1.3  # by geometric mean
CAPTURED_MEAN = 2.0


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster models are after their conversion, and which goals are reached."""
    timed = [row for row in rows if isinstance(row, Timed)]
    yield from warned(rows)
    after, captured = ratios(timed, AFTER), ratios(timed, AFTER + CAPTURED)
    for way, found in (
        (AFTER, after),
        (AFTER + CAPTURED, captured),
        (AFTER + COMPILED, ratios(timed, AFTER + COMPILED)),
    ):
        if found:
            worst = min(found, key=lambda name: found[name])
            mean = geometric_mean(found.values())
            yield f"{way}: {mean:.2f}x of {BEFORE} over {len(found)} runs; worst {found[worst]:.2f}x: {worst}"
    on_gpu = [row for row in timed if not on_cpu(row)]
    after, captured = ratios(on_gpu, AFTER), ratios(on_gpu, AFTER + CAPTURED)
    yield goal(f"never below {LEAST:g}x of {BEFORE}", min(after.values(), default=None), LEAST)
    yield goal(f"at least {MEAN:g}x of {BEFORE} by geometric mean", mean_of(after), MEAN)
    yield goal(f"with fastgan.capture at least {CAPTURED_MEAN:g}x by geometric mean", mean_of(captured), CAPTURED_MEAN)


def ratios(rows: Sequence[Timed], variant: str) -> dict[str, float]:
    """Return by the wall's clock how many times faster than before a variant runs each workload."""
    before = {key(row): row for row in rows if row.variant == BEFORE and row.passed}
    found = {}
    for row in rows:
        if row.variant == variant and row.passed and key(row) in before:
            times = ratio_by_wall(before[key(row)], row)
            if times is not None:
                found[" ".join(key(row))] = times
    return found


def key(row: Timed) -> tuple[str, str, str]:
    """Return what two rows of the same work share."""
    return row.workload, row.shape, row.dtype


def mean_of(found: dict[str, float]) -> float | None:
    """Return the geometric mean; None of nothing."""
    return geometric_mean(found.values()) if found else None


def goal(what: str, value: float | None, least: float) -> str:
    """Return one line about a goal on an H200."""
    return f"goal, {what}: {verdict(value, least, 'x')}"
