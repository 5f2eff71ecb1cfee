"""The runner: order, budget, faults, interruption, processes that die."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fastgan.benchmarks import runner
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.record import Check, Compiled, Record, Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task


def row(name: str, passed: bool = True) -> Timed:
    return Timed(name, "v", "1", "float32", Check(passed, 0.0, 0.0, None if passed else "planted"))


def simple(name: str, passed: bool = True, takes: float = 0.0) -> Iterator[Row]:
    time.sleep(takes)
    yield row(name, passed)


def raising(name: str, error: type[BaseException]) -> Iterator[Row]:
    yield row(name)
    raise error("planted\nsecond line")


def start(tasks: Sequence[Task], setting: Setting, *, apart: bool = False) -> tuple[Record, bool]:
    record = Record("test", [], True, setting.budget, environment(setting))
    suite = Suite("test", "a test", lambda setting: tasks, apart=apart)
    return record, runner.run(suite, setting, record, jobs=2)


def names(record: Record) -> list[str]:
    return [row.workload if isinstance(row, Timed) else row.variant for row in record.rows]


def test_the_most_important_rows_come_first_and_the_rest_is_named() -> None:
    done: list[str] = []

    def noted(name: str) -> Iterator[Row]:
        done.append(name)
        return simple(name, takes=0.6)

    tasks = [Task(name, functools.partial(noted, name), priority) for name, priority in (("c", 3), ("a", 1), ("b", 2))]
    record, passed = start(tasks, Setting(budget=0.9))
    assert done == names(record) == ["a", "b"]
    assert record.left_out == [{"name": "c", "why": "the budget of 0.9 s was spent"}]
    assert passed


def test_a_failed_check_fails_the_run_and_a_fault_costs_only_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    good = Task("good", functools.partial(simple, "good"))
    assert start([good], Setting())[1]
    assert not start([good, Task("bad", functools.partial(simple, "bad", False))], Setting())[1]
    record, passed = start([Task("fault", functools.partial(raising, "fault", ValueError)), good], Setting())
    assert not passed
    assert names(record) == ["good"]
    assert record.left_out == [{"name": "fault", "why": "ValueError: planted"}]
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_keeps_what_is_done() -> None:
    tasks = [
        Task("first", functools.partial(simple, "first")),
        Task("second", functools.partial(raising, "second", KeyboardInterrupt)),
        Task("third", functools.partial(simple, "third")),
    ]
    record = Record("test", [], True, None, environment(Setting()))
    with pytest.raises(KeyboardInterrupt):
        runner.run(Suite("test", "", lambda setting: tasks), Setting(), record)
    assert names(record) == ["first"]
    assert [entry["name"] for entry in record.left_out] == ["second", "third"]


def test_a_process_that_dies_takes_only_its_own_task_along() -> None:
    """The functions travel by reference, so they must be importable there: the standard library's are."""
    tasks = [
        Task("dies", functools.partial(os._exit, 11), 0, lambda why: Compiled("op", "kernel", "dies", 90, [why])),
        Task("dies silently", functools.partial(os._exit, 12), 1),
        *(Task(f"lives {at}", functools.partial(sorted, ()), 2) for at in range(3)),
    ]
    record, passed = start(tasks, Setting(), apart=True)
    assert not passed
    assert names(record) == ["dies"]
    assert [entry["name"] for entry in record.left_out] == ["dies silently"]
    assert "the process died" in record.left_out[0]["why"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from fastgan.benchmarks.runner import start_pool\n"
        "if __name__ == '__main__':\n"
        "    print(start_pool().submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")
