"""Locks between processes: one holder, named to the others; gone with it, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastgan.locks import holder, lock, locked, unlock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    file = lock(path)
    assert file is not None and str(os.getpid()) in holder(path)
    assert lock(path) is None
    unlock(file, path)
    assert not path.exists()
    again = lock(path)
    assert again is not None
    unlock(again, path)


def test_who_waits_is_told_for_whom_and_goes_on(tmp_path: Path) -> None:
    path, told = tmp_path / "a.lock", threading.Event()
    names: list[str] = []
    file = lock(path)
    assert file is not None

    def wait() -> None:
        with locked(path, lambda who: (names.append(who), told.set())):  # type: ignore[func-returns-value]
            names.append("inside")

    thread = threading.Thread(target=wait)
    thread.start()
    assert told.wait(30) and names == [f"process {os.getpid()} on {os.uname().nodename}"]
    unlock(file, path)
    thread.join(30)
    assert names[1:] == ["inside"] and not path.exists()


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_holder_locks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    code = (
        "import sys, time, pathlib, fastgan.locks as l; f = l.lock(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    assert lock(path) is None and str(child.pid) in holder(path)
    child.kill()
    child.wait()
    file = lock(path)
    assert file is not None
    unlock(file, path)
