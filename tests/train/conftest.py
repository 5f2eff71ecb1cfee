"""Processes that a test may kill, forked from one that has imported everything; a short training of everything."""

from __future__ import annotations

import itertools
import multiprocessing
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastgan.train import feed

MORTAL = """
import itertools, os, signal, sys
from pathlib import Path
from fastgan.train import alarms, checkpoint, files, metrics

calls, watched = itertools.count(), set()

def moment(before=lambda: None):
    if watched and next(calls) == dies_at:
        before()
        os.kill(os.getpid(), signal.SIGKILL)

def heard(event, about):
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open") and watched:
        writes = event != "open" or (isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and (event in ("os.remove", "os.rmdir") or folder in str(about[0])):
            moment()

def dying(function, half):
    def called(*given, **named):
        moment(lambda: half(*given))
        function(*given, **named)
    return called

sys.addaudithook(heard)
os.fsync = dying(os.fsync, lambda _: None)
checkpoint.write = dying(checkpoint.write, lambda path, content: path.write_bytes(content[: len(content) // 2]))
half = lambda path, text, *_: path.open("a").write(text[: len(text) // 2])
metrics.append, alarms.append = dying(metrics.append, half), dying(alarms.append, half)
"""


@pytest.fixture(scope="session")
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a script in a process of its own, with the names that are given; returns the process."""
    context = multiprocessing.get_context("forkserver")
    # the last is what torch.optim imports at its first use
    preload = ["fastgan.cli.train", "matplotlib.figure", "safetensors.torch", "tqdm.auto", "torch._dynamo"]
    context.set_forkserver_preload(preload)
    folder, numbers = tmp_path_factory.mktemp("children"), itertools.count()
    files: dict[str, str] = {}

    def start(script: str, **given: Any) -> Any:
        if script not in files:
            path = folder / f"child{next(numbers)}.py"
            path.write_text(script)
            files[script] = str(path)
        child = context.Process(target=runpy.run_path, args=(files[script], given))
        child.start()
        return child

    return start


@pytest.fixture(scope="session")
def mortal() -> str:
    """The beginning of a script that is killed in front of the moment ``dies_at`` of its dealings with ``folder``.

    A moment is what a process asks of the file system while ``watched`` is not empty: to open for writing, to write,
    rename, remove, make a folder, wait for the disk. What is written in one go is left half-written.
    """
    return MORTAL


@pytest.fixture
def reading() -> Callable[[], list[threading.Thread]]:
    """Return the readers of data that are at work."""
    return lambda: [thread for thread in threading.enumerate() if thread.name.startswith("fastgan-reader")]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Have readers take ``delay()`` seconds for a batch: ``with slow(delay):``."""

    @contextmanager
    def slowly(delay: Callable[[], float]) -> Iterator[None]:
        gathering = feed.gathering

        @contextmanager
        def slowed(data: Any) -> Iterator[Any]:
            with gathering(data) as gather:

                def gather_slowly(index: Any, into: Any) -> None:
                    time.sleep(delay())
                    gather(index, into)

                yield gather_slowly

        with monkeypatch.context() as patched:
            patched.setattr(feed, "gathering", slowed)
            yield

    return slowly
