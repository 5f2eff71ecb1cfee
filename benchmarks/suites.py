"""What a suite is, and which there are: every file of this folder that defines ``SUITE``."""

from __future__ import annotations

import importlib
import pkgutil
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.errors import unknown


@dataclass(frozen=True)
class Task:
    """One piece of a suite's work, whole in itself: its rows enter the record together or not at all."""

    name: str
    run: Callable[[], Iterable[Row]]  # where the suite runs apart, it travels to another process by pickle
    priority: int = 0  # lower first: with a budget, what matters most is done first
    crashed: Callable[[str], Row] | None = None  # the row to keep where a separate process died of this task
    suite: str | None = None  # where it is not that of the run


@dataclass(frozen=True)
class Suite:
    """A named set of tasks."""

    name: str
    line: str  # one line for the list
    tasks: Callable[[Setting], Sequence[Task]]
    arguments: Callable[[ArgumentParser], None] | None = None  # adds options of its own to the command line
    closing: Callable[[Sequence[Row]], Iterable[str]] | None = None  # lines to print below the table
    apart: bool = False  # tasks run in ``--jobs`` processes of their own instead of in this one
    budget: float | None = None  # seconds, where none is asked for
    needs_ceilings: bool = False  # measure the ceilings first, so that rows carry their share of the roofline


def discover() -> dict[str, Suite]:
    """Return the suites by name: a new one is one new file."""
    package = importlib.import_module("fastgan.benchmarks")
    found: dict[str, Suite] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == "__main__":
            continue
        suite = getattr(importlib.import_module(f"fastgan.benchmarks.{module.name}"), "SUITE", None)
        if suite is not None:
            found[suite.name] = suite
    return dict(sorted(found.items()))


def find(name: str, others: Iterable[str] = ()) -> Suite:
    """Return the suite called ``name``; an unknown one is a user's mistake, answered with the nearest name.

    ``others`` are names that might have been meant as well.
    """
    known = discover()
    if name not in known:
        raise unknown("suite", name, [*known, *others])
    return known[name]
