"""Suite `quality`: trains the literature's systems and measures what they are worth, beside the published figures.

A task is one run of one system by one seed, from which a row with the metric's values comes: `--resume` goes on where
it was stopped. On a CPU runs are shortened to what its hours allow (`--steps` asks for more), and the rows say so.
"""

from __future__ import annotations

import functools
import importlib
import math
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastgan.benchmarks.quality_tables import TABLES, System, Table
from fastgan.benchmarks.record import Row, Scored
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

if TYPE_CHECKING:
    from fastgan.evaluate.metric import Subject
    from fastgan.train import Trainer


@dataclass(frozen=True)
class Run:
    """One system trained from one seed, then measured."""

    table: Table
    system: System
    seed: int
    steps: int
    device: str
    smoke: bool

    def __call__(self) -> Iterator[Row]:
        """Yield the row."""
        from fastgan.train import Trainer

        keys: dict[str, Any] = {**self.system.keys, "seed": self.seed, "device": self.device}
        if self.steps:
            keys["steps"] = self.steps
        if self.device == "cpu":
            keys["threads"] = 1
        began = time.perf_counter()
        trainer = Trainer(self.system.preset, **keys)
        if self.steps:
            trainer.fit(progress=False)
            if trainer.exit_code:  # a signal, which fit has answered by ending early
                raise KeyboardInterrupt
        trained = time.perf_counter() - began
        metric = importlib.import_module(f"fastgan.evaluate.{self.table.metric}")
        n = 200 if self.smoke else None
        found = metric.measure(subject_of(trainer, self.seed), n, **{**self.table.options, **self.system.options})
        values = {name: float(value) for name, value in found.values.items() if math.isfinite(value)}
        yield Scored(
            table=self.table.name,
            system=self.system.name,
            preset=self.system.preset,
            seed=self.seed,
            steps=trainer.step,
            published_steps=self.table.steps,
            values=values,
            protocol=found.protocol,
            train_seconds=round(trained, 1),
        )


def subject_of(trainer: Trainer, seed: int) -> Subject:
    """What a metric is given: the generator, its training data, and their test split where there is one."""
    from fastgan import data
    from fastgan.evaluate.metric import Subject
    from fastgan.train.generate import WEIGHTS

    config = trainer.config
    load = functools.partial(data.load, config.data, image_size=config.image_size)
    return Subject(
        lambda n: trainer.sample(n, seed=seed + 1000).cpu(),
        trainer.data,
        rest=None if config.limit is None else load().part(config.limit),
        held_out=lambda: load(split="test") if "test" in data.splits(config.data) else None,
        seed=seed,
        weights=WEIGHTS["ema" if config.ema.decay else "raw"],
    )


def tasks(setting: Setting) -> Sequence[Task]:
    """List the runs: the first seeds of every system come first."""
    options, device = setting.options, setting.device.type
    planned = []
    for name in options.table or TABLES:
        table = TABLES[name]
        short = device == "cpu" or setting.smoke
        seeds = 1 if setting.smoke else options.seeds or (table.short_seeds if short else table.seeds)
        steps = 20 if setting.smoke else options.steps or (table.short if short else table.steps)
        systems = [one for one in table.systems if not options.system or one.name in options.system]
        if not systems:
            raise UserError(f"the table {name} has no such system: it has {', '.join(s.name for s in table.systems)}")
        for seed in range(options.first_seed, options.first_seed + seeds):
            for system in systems:
                much = steps if system.steps is None else system.steps
                run = Run(table, system, seed, much, device, setting.smoke)
                planned.append(Task(f"{name}/{system.name}/{much} steps/seed {seed}", run, priority=seed))
    return planned


def arguments(parser: ArgumentParser) -> None:
    """Add the suite's own options."""
    parser.add_argument("--table", nargs="+", choices=tuple(TABLES), help="which tables; all of them otherwise")
    parser.add_argument("--system", nargs="+", metavar="NAME", help="which systems of theirs, such as GAN")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each system; else the table's own number")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first of them; 0 otherwise")
    parser.add_argument("--steps", type=int, metavar="N", help="of each run; else the authors', or fewer on a CPU")


def closing(rows: Sequence[Row]) -> Iterable[str]:
    """Yield mean and spread of each system beside what its authors found."""
    from fastgan.benchmarks.quality_page import lines

    yield from lines([row for row in rows if isinstance(row, Scored)])


SUITE = Suite(
    "quality",
    "trains the literature's systems over seeds and measures modes, KL and likelihoods beside the published figures",
    tasks,
    arguments=arguments,
    closing=closing,
    apart=True,
)
