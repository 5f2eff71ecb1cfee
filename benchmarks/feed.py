"""Suite ``feed``: how many images a second are read ahead of the steps, and what part of their time steps would wait.

From memory, from a file that the system has in its cache, and from one whose pages were dropped before. The consumer
takes each batch at once (``wall_us`` is the time from one to the next), then as long for a step as ``--step`` says.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.benchmarks.record import Check, Row, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.data import Dataset, File, normalise
from fastgan.errors import UserError
from fastgan.train.feed import Feeder

BATCHES, SIZES, READERS, STEPS = (64, 256), (32, 64, 256), (1, 2, 4, 8), (1.0, 5.0, 20.0)  # steps in ms
SOURCES = ("memory", "file in cache", "file not in cache")
TOTAL = 2**29  # bytes of images, at most; each is read once
MOST = 200  # batches that are timed
TOLERANCE = 0.0  # a batch is what was asked for, or it is not


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="only batches of so many images")
    parser.add_argument("--size", nargs="+", type=int, metavar="N", help="only images of N x N, in color")
    parser.add_argument("--readers", nargs="+", type=int, metavar="N", help="only so many readers")
    parser.add_argument("--step", nargs="+", type=float, metavar="MS", help="only steps of so many milliseconds")
    parser.add_argument("--folder", metavar="PATH", help="where the file lies that is read: on the disk in question")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each source, batch and size."""
    batches, sizes = _asked(setting, "batch", BATCHES, (4,)), _asked(setting, "size", SIZES, (8,))
    _asked(setting, "step", STEPS, (1.0,)), _asked(setting, "readers", READERS, (2,))
    folder = getattr(setting.options, "folder", None)
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--folder {folder}: there is no such folder")
    return [
        Task(f"{source}, batch {batch} of {size}x{size}", functools.partial(measure, setting, source, batch, size), at)
        for at, (size, batch, source) in enumerate(product(sizes, batches, SOURCES))
    ]


def measure(setting: Setting, source: str, batch: int, size: int) -> Iterator[Row]:
    """Read by each number of readers, and let steps wait."""
    shape = f"{batch}x3x{size}x{size}"
    total = 64 * batch if setting.smoke else min(TOTAL // (3 * size * size), 2 * MOST * batch)
    if total < batch:
        raise UserError(f"--batch {batch} of {size}x{size} takes more than {TOTAL >> 20} MiB: take a smaller one")
    with images(setting, source, (total, 3, size, size)) as data:
        for readers in _asked(setting, "readers", READERS, (2,)):
            row = Timed("reading ahead", f"{source}, {readers} readers", shape, "uint8")
            prepare = {SOURCES[1]: warm, SOURCES[2]: forget}.get(source, lambda data: True)
            if not prepare(data):
                row.note = "this system keeps files in its cache"
                yield row
                continue
            feeder, order = feeder_of(setting, data, batch, readers)
            row.check = judge(feeder, data, order)
            if row.check.passed:
                prepare(data)
                row.wall_us, waits = delivered(feeder, total // batch), []
                for step in _asked(setting, "step", STEPS, (1.0,)):
                    prepare(data)
                    waits.append(f"{waiting(feeder, step, total // batch):.0%} at steps of {step:g} ms")
                row.gbs = batch * 3 * size * size / row.wall_us.median / 1e3
                row.note = f"{batch / row.wall_us.median * 1e6:.0f} images/s; waits {', '.join(waits)}"
            yield row


@contextmanager
def images(setting: Setting, source: str, shape: tuple[int, ...]) -> Iterator[Dataset]:
    """Context of random images in memory, or in a file of their own."""
    generator = torch.Generator().manual_seed(setting.seed)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if source == SOURCES[0]:
        yield Dataset("memory", pixels)
        return
    with tempfile.TemporaryDirectory(dir=getattr(setting.options, "folder", None)) as folder:
        path = Path(folder) / "images.npy"
        with path.open("wb") as file:
            np.save(file, pixels.numpy())
            file.flush()
            os.fsync(file.fileno())
        array = np.load(path, mmap_mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            yield Dataset(source, torch.from_numpy(array), file=File(path, int(array.offset)))


def feeder_of(setting: Setting, data: Dataset, batch: int, readers: int) -> tuple[Feeder, Tensor]:
    """Return what reads in a random order, and that order."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(setting.seed))
    per_epoch = len(data) // batch

    def rows(number: int) -> Tensor:
        return order[number % per_epoch * batch :][:batch]

    return Feeder(data, setting.device, rows, batch, readers=readers), order


def judge(feeder: Feeder, data: Dataset, order: Tensor) -> Check:
    """Compare the first batches with the images that they should be of."""
    with feeder.running(0):
        for at in range(min(3, len(data) // feeder.size)):
            with feeder.lent(1) as number:
                read = normalise(feeder.batch(number).cpu())
            wanted = normalise(data.images[order[at * feeder.size :][: feeder.size]])
            if not torch.equal(read, wanted):
                return Check(False, None, TOLERANCE, f"batch {at} holds other images")
    return Check(True, 0.0, TOLERANCE)


def delivered(feeder: Feeder, batches: int) -> Spread:
    """Return the time from batch to batch, each taken once it is there: means of eight, for they come in gusts."""
    together = min(8, max(1, batches // 4))
    times = []
    with feeder.running(0), feeder.lent(together):
        pass
    with feeder.running(together):
        for _ in range(min(MOST, batches - together) // together):
            started = time.perf_counter()
            for _ in range(together):
                with feeder.lent(1):
                    pass
            times.append((time.perf_counter() - started) / together * 1e6)
    return Spread.of(times)


def waiting(feeder: Feeder, step: float, batches: int) -> float:
    """Return the share of its time that a consumer waits whose steps take ``step`` milliseconds of sleep."""
    turns = max(2, min(batches, MOST, round(1000 / step)))
    with feeder.running(0):
        with feeder.lent(1):
            pass
        feeder.stalled()
        started = time.perf_counter()
        for _ in range(turns):
            with feeder.lent(1):
                time.sleep(step / 1000)
        return feeder.stalled() / (time.perf_counter() - started)


def warm(data: Dataset) -> bool:
    """Have a file in the system's cache."""
    if data.file is not None:
        with data.file.path.open("rb") as file:
            while file.read(2**24):
                pass
    return True


def forget(data: Dataset) -> bool:
    """Have the system drop a file's pages from its cache; whether it can be asked to."""
    if data.file is None or not hasattr(os, "posix_fadvise"):
        return False
    with data.file.path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _asked(setting: Setting, name: str, usual: Sequence[Any], smallest: Sequence[Any]) -> Sequence[Any]:
    asked = getattr(setting.options, name, None) or (smallest if setting.smoke else usual)
    if not all(0 < value < math.inf for value in asked):
        raise UserError(f"--{name} takes numbers above 0")
    return asked


SUITE = Suite(
    "feed",
    "images a second that are read ahead of the steps, from memory and from files, and how long steps would wait",
    tasks,
    arguments,
)
