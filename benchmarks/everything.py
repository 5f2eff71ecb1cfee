"""Suite ``all``: every timed suite's tasks in one order of importance, for as long as the budget lasts.

First the beginnings of the suites' own orders, as ``BEGINNINGS`` lists them: whole training steps, then what they are
made of. Then the rest of all suites, each as far on in its own order as the others. Rungs that ``max-autotune``
compiles for minutes are not among them: suite ``ladder`` has those.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fastgan.benchmarks.ceilings import RATES
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task, discover
from fastgan.errors import unknown

BEGINNINGS = (  # suite, and how far in its own order: the whole of it where there is less
    ("step", 3),
    ("ceilings", 2),
    ("conv", 10),
    ("linear", 8),
    ("step", 6),
    ("optim", 5),
    ("loss", 8),
    ("norm-penalty", 2),
    ("interpolate", 2),
    ("dropin", 4),
    ("diff-augment", 2),
    ("sample-norms", 2),
    ("gained-act", 2),
    ("upfirdn2d", 2),
    ("linear-act-stack", 2),
    ("host-overhead", 5),
    ("data", 2),
    ("feed", 2),
    ("step", 28),
)
SUITES = tuple(dict.fromkeys(name for name, _ in BEGINNINGS))
SMOKE = 2  # tasks of each suite: the suites' own smoke forms have the others
OPTIONS = {"step": ["--rung", "1", "2", "3"]}  # those that nobody waits minutes for
MINUTES = 8


def arguments(parser: ArgumentParser) -> None:
    """Add the choice of suites."""
    parser.add_argument("--suite", nargs="+", metavar="NAME", dest="suites", help="only these")


def tasks(setting: Setting) -> list[Task]:
    """Return the tasks of the suites that are asked for, in one order."""
    asked = vars(setting.options).get("suites") or SUITES
    for name in asked:
        if name not in SUITES:
            raise unknown("suite", name, SUITES)
    plans = {name: plan_of(name, setting) for name in SUITES if name in asked}
    return [replace(task, priority=at) for at, task in enumerate(merged(plans))]


def plan_of(name: str, setting: Setting) -> list[Task]:
    """Return a suite's tasks in its own order, with its options as they are without a word."""
    suite = suite_of(name)
    parser = ArgumentParser()
    if suite.arguments is not None:
        suite.arguments(parser)
    own = replace(setting, options=parser.parse_args(OPTIONS.get(name, [])))
    plan = sorted(suite.tasks(own), key=lambda task: task.priority)
    if name == "ceilings":  # its rates come before everything
        plan = [task for task in plan if task.priority >= RATES]
    return [replace(task, suite=name) for task in (plan[:SMOKE] if setting.smoke else plan)]


def suite_of(name: str) -> Suite:
    """Return a suite by name."""
    return known()[name]


@functools.cache
def known() -> dict[str, Suite]:
    """Return all suites, this one too."""
    return discover()


def merged(plans: dict[str, list[Task]]) -> Iterator[Task]:
    """Yield the beginnings, then the rest of all plans side by side: each task at its share of its own plan."""
    done = dict.fromkeys(plans, 0)
    for name, until in BEGINNINGS:
        if name in plans:
            yield from plans[name][done[name] : until]
            done[name] = max(done[name], min(until, len(plans[name])))
    rest = [
        (at / len(plan), order, task)
        for order, (name, plan) in enumerate(plans.items())
        for at, task in enumerate(plan)
        if at >= done[name]
    ]
    yield from (task for _, _, task in sorted(rest, key=lambda entry: entry[:2]))


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what each suite says of its own rows."""
    for name in SUITES:
        suite = suite_of(name)
        origins = (name, "ceilings") if suite.needs_ceilings else (name,)
        own = [row for row in rows if row.suite in origins]
        if suite.closing is not None and any(row.suite == name for row in own):
            yield f"{name}:"
            yield from (f"  {line}" for line in suite.closing(own))


SUITE = Suite(
    "all",
    f"every timed suite, what matters most first, {MINUTES} minutes unless --budget says otherwise",
    tasks,
    arguments,
    closing,
    budget=60.0 * MINUTES,
    needs_ceilings=True,
)
