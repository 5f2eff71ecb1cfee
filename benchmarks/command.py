"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from fastgan.benchmarks import runner, table
from fastgan.benchmarks.environment import environment, state
from fastgan.benchmarks.record import Record, Row, write
from fastgan.benchmarks.resume import Former, former
from fastgan.benchmarks.resume import ceilings as ceilings_known
from fastgan.benchmarks.setting import Setting, choose_device
from fastgan.benchmarks.suites import Suite, discover, find
from fastgan.data.places import cache_folder
from fastgan.errors import UserError

ACTIONS = {  # file, what follows the name, what it does
    "compare": ("compare", "A B", "rows of two records side by side: exit code 1 where B is slower beyond noise"),
    "predict": ("predict", "--gpu NAME", "floor, step time and launches of each training step on a card, without one"),
    "report": ("report", "", "write the tables and pictures of docs/benchmarks.md from benchmarks/results/*.json"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about as a :class:`~fastgan.errors.UserError`."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one suite, or list them. Returns 0, 1 (a check failed), 2 (a user's mistake), 130 or 143 (stopped)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as done:  # --help
        return int(done.code or 0)


def run(arguments: list[str]) -> int:
    """Parse and run; raises :class:`~fastgan.errors.UserError`."""
    if arguments and arguments[0] in ACTIONS:
        return int(importlib.import_module(f"fastgan.benchmarks.{ACTIONS[arguments[0]][0]}").main(arguments[1:]))
    suites = discover()
    parser = common()
    named = [word for word in arguments if word in suites]
    name = named[0] if named else parser.parse_known_args(arguments)[0].suite
    if name is None:
        parser.parse_args(arguments)
        listed = {name: suite.line for name, suite in suites.items()}
        listed |= {f"{name} {words}".strip(): line for name, (_, words, line) in ACTIONS.items()}
        width = max(map(len, listed))
        print("\n".join(f"{name.ljust(width)}  {line}" for name, line in listed.items()))
        return 0
    suite = find(name, ACTIONS)
    if suite.arguments is not None:
        suite.arguments(parser)
    options = parser.parse_args(arguments)
    budget = options.budget if options.budget is not None or options.smoke else suite.budget
    setting = Setting(choose_device(options.device), options.smoke, budget, options.seed, options)
    return measure(suite, setting, [suite.name, *(word for word in arguments if word != suite.name)], options)


def common() -> Parser:
    """Return the parser of what every suite understands."""
    parser = Parser(prog="python -m fastgan.benchmarks", description="Measure, or list what there is.")
    parser.add_argument("suite", nargs="?", help="which suite, or compare, predict, report; none: list them")
    parser.add_argument("--smoke", action="store_true", help="the smallest shapes, the fewest repeats: does it run?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    parser.add_argument(
        "--resume", type=Path, metavar="PATH", help="go on with the record there: what it holds is not measured again"
    )
    parser.add_argument(
        "--budget", type=seconds, metavar="SECONDS", help="stop after so long; what matters most comes first"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to measure")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs and of drawn slices")
    parser.add_argument("--jobs", type=positive, default=2, help="processes, for suites that compile")
    return parser


def seconds(text: str) -> float:
    """Parse a budget."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("a budget is a positive number of seconds")
    return value


def positive(text: str) -> int:
    """Parse a count of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def make_room(path: Path) -> None:
    """See to it that a record can be written there, before anything is measured."""
    if path.is_dir():
        raise UserError(f"--json {path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path} cannot be written: {path.parent} is not yours to write")


def measure(suite: Suite, setting: Setting, command: list[str], options: argparse.Namespace) -> int:
    """Run a suite, print its table, write its record."""
    record = Record(suite.name, command, setting.smoke, setting.budget, environment(setting), setting.ceilings)
    past = former(options.resume, record) if options.resume else Former()
    path: Path | None = options.json or options.resume
    if path is not None:
        make_room(path)

    def keep(complete: bool = False) -> None:
        now = {"date": record.environment["date"], "seconds": setting.elapsed(), **state(setting)}
        new = len(record.rows) - sum(len(rows) for rows in past.rows.values())
        record.sessions = [*past.sessions, now | {"rows": max(0, new)}]
        record.seconds = past.seconds + setting.elapsed()
        if path is not None:
            write(record, path, checked=complete)

    code = 0
    try:
        with termination_as_interruption(), compilations_kept():
            if suite.needs_ceilings:
                suite.tasks(setting)  # a mistake in the options is told before anything is measured
                record.rows += ceilings_of(setting, past)
            code = 0 if runner.run(suite, setting, record, options.jobs, past.rows, keep) else 1
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
    keep(complete=True)
    print(table.render(record))
    for line in suite.closing(record.rows) if suite.closing else ():
        print(line)
    form = " (smoke: these times say nothing)" if setting.smoke else ""
    print(f"{suite.name}: {len(record.rows)} rows in {record.seconds:.1f} s on {record.device}{form}")
    if past.sessions:
        print(f"{sum(len(rows) for rows in past.rows.values())} of them were there before: {options.resume}")
    if path is not None:
        print(f"written to {path}")
    return code


def ceilings_of(setting: Setting, past: Former) -> list[Row]:
    """Measure the ceilings, or take those of the run that is gone on with."""
    from fastgan.benchmarks import ceilings

    rates = [task.name for task in ceilings.tasks(setting) if task.priority < ceilings.RATES]
    rows = ceilings_known(past, rates)
    if rows is None or past.ceilings is None:
        return ceilings.measure(setting)
    for name in ("copy_gbs", "tflops", "launch_us"):
        setattr(setting.ceilings, name, getattr(past.ceilings, name))
    return rows


@contextlib.contextmanager
def compilations_kept() -> Iterator[None]:
    """Context in which torch.compile keeps what it makes in our cache, unless the user says where."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(cache_folder() / "inductor")
    try:
        yield
    finally:
        del os.environ[name]


class Terminated(KeyboardInterrupt):
    """SIGTERM: as an interruption, what is done is kept."""


@contextlib.contextmanager
def termination_as_interruption() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
