"""Runs the tasks of a suite in order of priority, within the budget, here or in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

from fastgan.benchmarks.record import Record, Row, Timed, said
from fastgan.benchmarks.resume import Key
from fastgan.benchmarks.setting import Effort, Setting
from fastgan.benchmarks.suites import Suite, Task

KEEP_EVERY = 20.0  # seconds


def nothing() -> None:
    """Keep nothing."""


@dataclass
class Outcome:
    """What came of one task: rows, or the reason why there are none."""

    task: Task
    rows: list[Row] = field(default_factory=list)
    why: str | None = None
    wrong: bool = False  # the reason is a fault, not a lack of time


def run(
    suite: Suite,
    setting: Setting,
    record: Record,
    jobs: int = 1,
    known: Mapping[Key, Sequence[Row]] | None = None,
    keep: Callable[[], None] = nothing,
) -> bool:
    """Run the suite's tasks into ``record``; an interruption keeps what is done and is raised again.

    Tasks whose rows are ``known`` are not run again. ``keep`` is called now and then, when the record holds all that is
    done so far. Returns True where every task gave its rows or was left out for want of time, and every row passed.
    """
    tasks = sorted(suite.tasks(setting), key=lambda task: task.priority)
    plan = {id(task): (task.suite or suite.name, task.name) for task in tasks}
    kept = {id(task): list(known[plan[id(task)]]) for task in tasks if known and plan[id(task)] in known}
    todo = [task for task in tasks if id(task) not in kept]
    waiting = {id(task): task for task in todo}
    outcomes: Generator[Outcome] = apart(todo, setting, jobs) if suite.apart and jobs > 1 else here(todo, setting)
    before, left_out, whole = list(record.rows), list(record.left_out), True
    missing: dict[int, str] = {}
    why = "interrupted"

    def gather() -> None:
        record.rows = before + [row for task in tasks for row in kept.get(id(task), [])]  # in the plan's order
        record.left_out = left_out + [{"name": label(task), "why": missing.get(id(task), why)} for task in tasks
            if id(task) in missing or id(task) in waiting]  # fmt: skip
        record.seconds = setting.elapsed()

    written = time.monotonic()
    try:
        with progress(suite.name, len(tasks)) as bar, contextlib.closing(outcomes):
            for _ in kept:
                bar.update()
            for outcome in outcomes:
                at = id(outcome.task)
                bar.set_postfix_str(outcome.task.name, refresh=False)
                bar.update()
                del waiting[at]
                for row in outcome.rows:
                    row.suite, row.task = plan[at]
                kept[at] = outcome.rows
                whole = whole and not outcome.wrong
                if outcome.why is None and setting.remaining() <= 0 and any(map(short, outcome.rows)):
                    outcome.why = "cut short by the budget: fewer repeats than asked for"
                if outcome.why is not None:
                    missing[at] = outcome.why
                if time.monotonic() - written > KEEP_EVERY:
                    gather()
                    keep()
                    written = time.monotonic()
        why = f"the budget of {setting.budget:g} s was spent" if setting.budget is not None else why
    finally:
        gather()
    return whole and record.passed


def short(row: Row) -> bool:
    """Whether a row has fewer repeats than a run without a budget would have."""
    best = row.best if isinstance(row, Timed) else None
    return best is not None and best.n < Effort.repeats


def label(task: Task) -> str:
    """Name a task, with its suite where several are run as one."""
    return f"{task.suite}: {task.name}" if task.suite else task.name


def here(tasks: Sequence[Task], setting: Setting) -> Generator[Outcome]:
    """Run tasks one after another in this process, until the budget is spent."""
    for task in tasks:
        if setting.remaining() <= 0:
            return
        yield attempt(task)


def attempt(task: Task) -> Outcome:
    """Run a task; what it raises becomes its reason, so that one fault does not cost the rest of a long run."""
    try:
        return Outcome(task, list(task.run()))
    except Exception as error:
        traceback.print_exc()
        return Outcome(task, why=said(error), wrong=True)


def apart(tasks: Sequence[Task], setting: Setting, jobs: int) -> Generator[Outcome]:
    """Run tasks in ``jobs`` processes, one at a time in each: a process that dies takes only its own task along."""
    todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()  # None: a thread has ended
    stop = threading.Event()
    for task in tasks:
        todo.put(task)
    threads = [threading.Thread(target=serve, args=(todo, done, stop, setting), daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        running = jobs
        while running:
            outcome = done.get()
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def start_pool() -> ProcessPoolExecutor:
    """Return a pool of one process, started at its first task."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()  # a killed parent shuts no pool down, and its worker would wait for ever
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve(todo: queue.SimpleQueue[Task], done: Any, stop: threading.Event, setting: Setting) -> None:
    """Feed one process with tasks, and replace it where it dies."""
    pool = start_pool()
    try:
        while not stop.is_set() and setting.remaining() > 0:
            try:
                task = todo.get_nowait()
            except queue.Empty:
                break
            try:
                done.put(replace(pool.submit(attempt, replace(task, crashed=None)).result(), task=task))
            except BrokenProcessPool:
                pool = start_pool()
                done.put(dead(task))
            except Exception as error:  # what cannot travel by pickle
                done.put(Outcome(task, why=said(error), wrong=True))
    finally:
        pool.shutdown()
        done.put(None)


def dead(task: Task) -> Outcome:
    """Say that the process died of ``task``: by a failing row where the task can build one."""
    why = "the process died: a crash inside the compiler or a library"
    if task.crashed is None:
        return Outcome(task, why=why, wrong=True)
    return Outcome(task, [task.crashed(why)])


def progress(name: str, total: int) -> Any:
    """Return a progress bar on a terminal; none where tqdm is missing or nobody watches."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return NoBar()
    return tqdm(total=total, desc=name, unit="task", disable=None, leave=False)


class NoBar(contextlib.nullcontext[None]):
    """A bar that shows nothing."""

    def __enter__(self) -> Any:
        return self

    def update(self) -> None:
        """Count one task."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Name the task."""
