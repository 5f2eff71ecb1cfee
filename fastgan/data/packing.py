"""Decoding pictures by a pool of threads, in order, into the body of one .npy file."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fastgan.data.pixels import MOST_BYTES, PictureError, Pixels, decode
from fastgan.errors import UserError, require

AHEAD = 4  # pictures that each thread may be ahead of the writer
_HEADER = 128  # bytes of a .npy header of version 1, padded: the shape is known at the end
_DELAY = 0.5  # seconds before a progress bar is worth showing

Picture = Pixels | PictureError  # what a file gives, or why it gives none


class Item(NamedTuple):
    """A picture in a file, or in a part of one; ``label`` is the name or number of its class."""

    name: str
    file: str
    label: str | int | None = None
    start: int = 0
    size: int | None = None

    def read(self, image_size: int | None) -> Picture:
        """Decode it; what is wrong with it comes back, so that a pool of threads need not stop."""
        try:
            with open(self.file, "rb") as file:
                held = os.fstat(file.fileno()).st_size if self.size is None else self.size
                if held > MOST_BYTES:
                    return PictureError(f"{held:,} bytes are too many for a picture")
                if self.size is None:
                    return decode(file, image_size)
                file.seek(self.start)
                return decode(io.BytesIO(file.read(self.size)), image_size)
        except PictureError as error:
            return error
        except (OSError, ValueError) as error:  # a name may hold what no system takes
            return PictureError(getattr(error, "strerror", None) or type(error).__name__)


class Skipped(NamedTuple):
    """What is not in the pack, and why not."""

    name: str
    why: str


@dataclass
class Packed:
    """What came of packing: how many pictures of which shape, which items they were, and what was skipped."""

    shape: tuple[int, ...] = ()
    kept: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def workers() -> int:
    """Threads that decode: one for each core that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, usable)


def decoded(items: Sequence[Item], image_size: int | None, threads: int) -> Generator[Picture, None, None]:
    """Decode ``items`` in their order, ``threads`` at a time: Pillow's decoders leave the interpreter to others."""
    queue: deque[Future[Picture]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastgan-decode")
    try:
        for item in items:
            queue.append(pool.submit(item.read, image_size))
            if len(queue) >= AHEAD * threads:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def pack_into(path: Path, items: Sequence[Item], name: str, image_size: int | None) -> Packed:
    """Write the pictures of ``items`` that can be read to ``path``, (n, C, H, W) uint8 in the .npy format.

    C is 1 where every picture is grey, else 3. Nothing is kept in memory.

    Raises:
        UserError: Pictures of several sizes, or that are not square, and no ``image_size``; no room for them.
    """
    tqdm = require("tqdm.auto", why="the progress bar of packing").tqdm
    done = Packed()
    how = {"total": len(items), "desc": f"packing {name}", "unit": "image", "delay": _DELAY, "leave": False}
    with path.open("wb+") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow thinks of damaged files is said once, at the end
        writer = _Writer(file, len(items), name, image_size)
        with closing(decoded(items, image_size, workers())) as pictures, tqdm(pictures, **how) as bar:
            for at, picture in enumerate(bar):
                if isinstance(picture, PictureError):
                    done.skipped.append(Skipped(items[at].name, str(picture)))
                else:
                    writer.add(picture, items[at].name)
                    done.kept.append(at)
        if done.kept:
            done.shape = writer.finish(len(done.kept))
    return done


class _Writer:
    """Appends pictures; begins with one channel and widens what is there when the first colours come."""

    def __init__(self, file: IO[bytes], count: int, name: str, image_size: int | None) -> None:
        self.file, self.count, self.name, self.image_size = file, count, name, image_size
        self.size: tuple[int, int] | None = None
        self.first = ""
        self.written = 0
        self.channels = 1
        file.write(bytes(_HEADER))

    def add(self, picture: Pixels, name: str) -> None:
        """Append one."""
        height, width, channels = picture.shape
        if self.size is None:
            self.size, self.first = (height, width), name
            self._check_room(channels)
        if (height, width) != self.size or height != width:
            which = f"{self.first!r} is {self.size[1]}x{self.size[0]}"
            also = "" if name == self.first else f", {name!r} {width}x{height}"
            raise UserError(f"{self.name}: {which}{also}: set image_size=64, say, to resize each one's central square")
        if channels > self.channels:
            self._widen()
        planes = picture.transpose(2, 0, 1)
        self.file.write(np.broadcast_to(planes, (self.channels, height, width)).tobytes())
        self.written += 1

    def _widen(self) -> None:
        """Write each grey picture three times, from the last to the first, within the file itself."""
        assert self.size is not None
        self._check_room(3)
        plane = self.size[0] * self.size[1]
        for at in reversed(range(self.written)):
            self.file.seek(_HEADER + at * plane)
            grey = self.file.read(plane)
            self.file.seek(_HEADER + at * 3 * plane)
            self.file.write(grey * 3)
        self.file.seek(_HEADER + self.written * 3 * plane)
        self.channels = 3

    def _check_room(self, channels: int) -> None:
        assert self.size is not None
        needed = (self.count - self.written // 3) * channels * self.size[0] * self.size[1]
        free = shutil.disk_usage(os.path.dirname(self.file.name)).free
        if needed > free:
            raise UserError(
                f"{self.name}: {self.count:,} pictures of {self.size[1]}x{self.size[0]} take {needed / 1e6:,.1f} MB in"
                f" the cache and {free / 1e6:,.1f} MB are free there: set FASTGAN_CACHE, or a smaller image_size"
            )

    def finish(self, kept: int) -> tuple[int, ...]:
        """Write the header, now that the shape is known, and have everything on the disk."""
        assert self.size is not None
        shape = (kept, self.channels, *self.size)
        fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        header = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + fields.encode("ascii")
        self.file.seek(0)
        self.file.write(header.ljust(_HEADER - 1) + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        return shape
