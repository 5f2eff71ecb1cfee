"""What suite ``step`` is to reach, and what its rows say to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastgan.benchmarks import ladder
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.speedups import OURS, ratio, speedups, summary

FIT = ": through fit"
HOST_US = 15.0
OVERHEAD = 0.03
DIGITS = "gan-digits"
LOOP, TRAINER = "plain loop", "fastgan trainer"


@dataclass(frozen=True)
class Goal:
    """How many times faster than others a step of the engine is to be, on an H200."""

    workload: str
    shape: str
    best_rung: float
    eager: float | None = None


GOALS = (
    Goal("mlp", "batch 64", 1.8, 15.0),
    Goal("dcgan-64", "batch 128", 1.25, 2.5),
    Goal("wgan-gp", "batch 64", 1.4),
)


def host(workload: str) -> str:
    """Return the name of the rows that hold the host's time."""
    return f"{workload}: host"


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster the engine is than the best rung, and which goals are reached."""
    timed = [row for row in rows if isinstance(row, Timed)]
    if any(on_cpu(row) for row in timed):
        yield "these are rows of a CPU, where auto is plain PyTorch: they say nothing about a GPU"
    for name in OURS:
        yield from summary(name, list(speedups(plain(timed), name)))
    for goal in GOALS:
        yield from judged(goal, timed)
    yield overhead(timed)


def on_cpu(row: Timed) -> bool:
    """Whether a CPU did it."""
    return "CPU" in (row.note or "").split("; ")


def plain(rows: Sequence[Timed]) -> list[Timed]:
    """Return the rows of whole steps that everybody took."""
    return [row for row in rows if not row.workload.endswith((host(""), FIT)) and row.workload != DIGITS]


def judged(goal: Goal, rows: Sequence[Timed]) -> Iterator[str]:
    """Yield a line for each number of a goal."""
    what = f"goal, {goal.workload} {goal.shape}"
    own = [row for row in rows if row.shape == goal.shape and not on_cpu(row)]
    steps = [row for row in own if row.workload == goal.workload and row.passed]
    ours = next((row for row in steps if row.variant == OURS[0] and row.wall_us), None)
    rival = ladder.best([row for row in steps if row.variant not in OURS])
    eager = next((row for row in steps if row.variant == "1 eager"), None)
    for least, other, name in ((goal.best_rung, rival, "the best rung"), (goal.eager, eager, "eager")):
        if least is not None:
            times = None if ours is None or other is None else ratio_by_wall(other, ours)
            whom = f"{name} ({other.variant})" if other is not None and other is rival else name
            yield f"{what}: at least {least:g}x {whom}: {verdict(times, least, 'x')}"
    spent = next((row for row in own if row.workload == host(goal.workload) and row.variant == OURS[0]), None)
    us = spent.wall_us.median if spent is not None and spent.wall_us else None
    yield f"{what}: under {HOST_US:g} us of the host a step: {verdict(us, HOST_US, ' us', most=True)}"


def ratio_by_wall(other: Timed, row: Timed) -> float | None:
    """Return how many times faster ``row`` is by the wall, which is what a training waits for."""
    if other.wall_us is None or row.wall_us is None:
        return None
    return other.wall_us.median / row.wall_us.median


def verdict(value: float | None, bound: float, unit: str, most: bool = False) -> str:
    """Say whether a number reaches its goal."""
    if value is None:
        return "not measured"
    reached = value < bound if most else value >= bound
    return f"{'reached' if reached else 'missed'}, {value:.2f}{unit}"


def overhead(rows: Sequence[Timed]) -> str:
    """Say what the trainer costs over a loop written by hand, on a CPU."""
    found = {row.variant: row for row in rows if row.workload == DIGITS and row.passed and row.wall_us}
    what = f"goal, {DIGITS} on a CPU: under {OVERHEAD:.0%} over a plain loop"
    if not {LOOP, TRAINER} <= found.keys():
        return f"{what}: not measured"
    times = ratio(found[TRAINER], found[LOOP])
    assert times is not None
    return f"{what}: {'reached' if times - 1 < OVERHEAD else 'missed'}, {times - 1:+.1%}"
