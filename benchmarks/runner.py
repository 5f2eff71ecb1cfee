"""Runs the tasks of a suite in order of priority, within the budget, here or in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

from fastgan.benchmarks.record import Record, Row, said
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task


@dataclass
class Outcome:
    """What came of one task: rows, or the reason why there are none."""

    task: Task
    rows: list[Row] = field(default_factory=list)
    why: str | None = None
    wrong: bool = False  # the reason is a fault, not a lack of time


def run(suite: Suite, setting: Setting, record: Record, jobs: int = 1) -> bool:
    """Run the suite's tasks into ``record``; an interruption keeps what is done and is raised again.

    Returns True where every task gave its rows or was left out for want of time, and every row passed.
    """
    tasks = sorted(suite.tasks(setting), key=lambda task: task.priority)
    waiting = {id(task): task for task in tasks}
    outcomes: Generator[Outcome] = apart(tasks, setting, jobs) if suite.apart and jobs > 1 else here(tasks, setting)
    whole = True
    kept: dict[int, list[Row]] = {}
    why = "interrupted"
    try:
        with progress(suite.name, len(tasks)) as bar, contextlib.closing(outcomes):
            for outcome in outcomes:
                bar.set_postfix_str(outcome.task.name, refresh=False)
                bar.update()
                del waiting[id(outcome.task)]
                kept[id(outcome.task)] = outcome.rows
                whole = whole and not outcome.wrong
                if outcome.why is not None:
                    record.leave_out(outcome.task.name, outcome.why)
        why = f"the budget of {setting.budget:g} s was spent" if setting.budget is not None else why
    finally:
        record.rows += [row for task in tasks for row in kept.get(id(task), [])]  # in the plan's order
        for task in waiting.values():
            record.leave_out(task.name, why)
        record.seconds = setting.elapsed()
    return whole and record.passed


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
