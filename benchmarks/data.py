"""Suite ``data``: images a second from files into pixels, and from a pack into batches, by source, size and threads.

"decode" reads, decodes and resizes as packing does for ``folder:`` and ``wds:``. "gather" forms batches as a step does
whose data lie in the host's memory: from an ordinary tensor, and from a memory map whose pages the system holds
already; on a GPU, copied there, too. A disk is no part of it: how much that reads a second is its own affair.
"""

from __future__ import annotations

import functools
import io
import tarfile
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastgan.benchmarks.measure import WallClock, interleave
from fastgan.benchmarks.record import Check, Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.data import Dataset
from fastgan.data.pack import shared
from fastgan.data.packing import Item, Picture, decoded, workers
from fastgan.errors import UserError, require

SIDES = (256, 1024)  # of the images that are decoded
KINDS = ("jpeg", "png", "jpeg in a shard")
PACKED = 64  # what they are resized to
THREADS = (1, 2, 4, 8, 16, 32)  # up to twice as many as cores
SIZES = (32, 64, 128, 256)  # of the images that are gathered
BATCHES = (64, 256)
FILES = 64  # that a call decodes
STORE = 1 << 28  # bytes of a data set to gather from


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    sides: Sequence[int] = SIDES
    threads: Sequence[int] = THREADS
    sizes: Sequence[int] = SIZES
    batches: Sequence[int] = BATCHES
    files: int = FILES
    store: int = STORE


SMOKE = Plan((24,), (1, 2), (8,), (4,), 6, 1 << 14)


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--sizes", nargs="+", type=int, metavar="S", help="only batches of images of these sides")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="only batches of these sizes")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="only pools of so many threads")


def planned(setting: Setting) -> Plan:
    """Return what is to be measured, by the options."""
    plan = SMOKE if setting.smoke else Plan(threads=[count for count in THREADS if count <= 2 * workers()])
    asked = {name: value for name in ("sizes", "batches", "threads") if (value := getattr(setting.options, name, None))}
    if any(number < 1 for numbers in asked.values() for number in numbers):
        raise UserError("--sizes, --batches and --threads have to be at least 1")
    return replace(plan, **asked)


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each kind of file and side, and one for each size and batch."""
    plan = planned(setting)
    found: list[Task] = []
    for side in plan.sides:
        for kind in KINDS:
            run = functools.partial(measure_decoding, setting, plan, kind, side)
            found.append(Task(f"decode {kind} {side}", run, len(found)))
    for size in plan.sizes:
        for batch in plan.batches:
            run = functools.partial(measure_gather, setting, plan, size, batch)
            found.append(Task(f"gather {size} {batch}", run, len(found)))
    return found


def measure_decoding(setting: Setting, plan: Plan, kind: str, side: int) -> Iterator[Row]:
    """Time pools of threads; each has to come to the same pixels."""
    image_size = min(PACKED, side)
    with tempfile.TemporaryDirectory(prefix="fastgan-data-") as home:
        items = write_images(Path(home), kind, side, plan.files, setting.seed)

        def decode(threads: int) -> list[Picture]:
            return list(decoded(items, image_size, threads))

        first = decode(plan.threads[0])
        contenders, checks = {}, {}
        for threads in plan.threads:
            name = f"{threads} thread{'s' * (threads > 1)}"
            contenders[name] = functools.partial(decode, threads)
            checks[name] = Check(same(contenders[name](), first), why="other pixels than the first pool's")
        shape = f"{plan.files} of {side}x{side} -> {image_size}"
        yield from timed(setting, f"decode {kind}", shape, contenders, checks, plan.files)


def same(pictures: Sequence[Picture], others: Sequence[Picture]) -> bool:
    """Whether both are the same pixels, all of them decoded."""
    return len(pictures) == len(others) and all(
        isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
        for a, b in zip(pictures, others, strict=True)
    )


def measure_gather(setting: Setting, plan: Plan, size: int, batch: int) -> Iterator[Row]:
    """Time batches of random images out of memory and out of a map, in fp32 on the device."""
    count = max(2 * batch, plan.store // (3 * size * size))
    generator = np.random.default_rng(setting.seed)
    pixels = generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    orders = [torch.from_numpy(generator.integers(0, count, batch)) for _ in range(16)]
    with tempfile.TemporaryDirectory(prefix="fastgan-data-") as home:
        np.save(Path(home) / "images.npy", pixels)
        in_memory = Dataset("memory", torch.from_numpy(pixels))
        mapped = Dataset("map", shared(np.load(Path(home) / "images.npy", mmap_mode="r")))
        datasets = {"memory": in_memory, "memory map": mapped}
        if setting.on_gpu:
            datasets |= {f"{name}, copied": replace(data, placed=setting.device) for name, data in datasets.items()}
        right = torch.from_numpy(pixels[orders[0].numpy()]).float() / 127.5 - 1
        checks = {}
        for name, data in datasets.items():
            error = float((data.batch(orders[0]).cpu() - right).abs().max())
            checks[name] = Check(error <= 1e-6, error, 1e-6)
        contenders = {name: functools.partial(gathered, data, orders) for name, data in datasets.items()}
        shape = f"{batch} of {count}x3x{size}x{size}"
        yield from timed(setting, "gather", shape, contenders, checks, batch * len(orders), 5 * 3 * size * size)
        del datasets, mapped, contenders, data  # the map, before its file


def gathered(data: Dataset, orders: Sequence[torch.Tensor]) -> None:
    """Form a batch for each order."""
    for order in orders:
        data.batch(order)


def timed(
    setting: Setting,
    workload: str,
    shape: str,
    contenders: Mapping[str, Callable[[], object]],
    checks: Mapping[str, Check],
    images: int,
    moved: int | None = None,
) -> Iterator[Row]:
    """Race what passed its check and say images a second; ``moved`` are bytes an image."""
    right = {name: [call] for name, call in contenders.items() if checks[name].passed}
    spreads = interleave(right, WallClock(setting.device), setting.effort) if right else {}
    baseline = next(iter(contenders))
    for name, check in checks.items():
        row = Timed(workload, name, shape, "uint8", check, baseline)
        if name in spreads:
            microseconds = spreads[name].median
            row.wall_us = spreads[name]
            row.gbs = None if moved is None else images * moved / microseconds / 1e3
            row.note = f"{images / microseconds * 1e6:,.0f} images/s"
        yield row


def write_images(home: Path, kind: str, side: int, count: int, seed: int) -> list[Item]:
    """Write images as smooth as photographs are, with some noise, as files or into a shard."""
    images = require("PIL.Image", why="writing the images to decode")
    generator = np.random.default_rng(seed)
    format, files = kind.partition(" ")[0], []
    for _ in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(images.fromarray(coarse).resize((side, side), images.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + generator.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        images.fromarray(noisy).save(file, format.upper())
        files.append(file.getvalue())
    if kind == format:
        for at, content in enumerate(files):
            (home / f"{at}.{format}").write_bytes(content)
        return [Item(f"{at}.{format}", str(home / f"{at}.{format}")) for at in range(count)]
    items, path = [], home / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for at, content in enumerate(files):
            info = tarfile.TarInfo(f"{at}.jpg")
            info.size = len(content)
            start = archive.offset + tarfile.BLOCKSIZE
            archive.addfile(info, io.BytesIO(content))
            items.append(Item(info.name, str(path), None, start, len(content)))
    return items


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say the best rate of each workload and shape."""
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for row in rows:
        if isinstance(row, Timed) and row.wall_us is not None:
            key, found = (row.workload, row.shape), (row.wall_us.median, f"{row.note} ({row.variant})")
            best[key] = min(best.get(key, found), found)
    for (workload, shape), (_, rate) in best.items():
        yield f"{workload}, {shape}: at most {rate}"


SUITE = Suite(
    "data",
    "images a second: decoded, by source and threads; gathered into batches, from memory and from a map",
    tasks,
    arguments,
    closing,
)
