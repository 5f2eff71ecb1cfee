"""Samples gathered from where a data set lies into memory of one's own, by any number of threads at once.

From memory, one call gathers a batch, without Python's lock. From a file each sample is read by a call of its own, not
through the memory map: where a disk fails, or somebody has cut the file short, the system ends a process that touches
the map (SIGBUS), and a read says so. Samples are read in the order of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastgan.data.dataset import Dataset, File
from fastgan.errors import UserError

Array = npt.NDArray[Any]
Gather = Callable[[Tensor, Array], None]  # of the samples at (b,) int64 on the CPU into a contiguous (b, *sample_shape)


@contextmanager
def gathering(data: Dataset) -> Iterator[Gather]:
    """Context of a function that gathers samples of ``data``, which lie on the host.

    Raises UserError, as the function does, where the data's file is no more what it was.
    """
    if data.file is None or not hasattr(os, "preadv"):
        yield _from_memory(data.images)
        return
    handle = _opened(data.file, data.images.nbytes)
    try:
        yield _from_file(data.file, handle, data.images[0].nbytes)
    finally:
        os.close(handle)


def _from_memory(images: Tensor) -> Gather:
    samples = images.detach().numpy()

    def gather(index: Tensor, into: Array) -> None:
        np.take(samples, index.numpy(), axis=0, out=into, mode="clip")  # any other mode goes by a copy of the result

    return gather


def _opened(file: File, needed: int) -> int:
    try:
        handle = os.open(file.path, os.O_RDONLY)
        if os.fstat(handle).st_size >= file.offset + needed:
            return handle
    except OSError as error:
        raise _unreadable(file, error.strerror or "cannot be opened") from error
    os.close(handle)
    raise _unreadable(file, "it is shorter than it was")


def _from_file(file: File, handle: int, size: int) -> Gather:
    def gather(index: Tensor, into: Array) -> None:
        rows = memoryview(into).cast("B")  # type: ignore[arg-type]
        samples = index.numpy()
        for row in np.argsort(samples).tolist():
            read(rows[row * size : (row + 1) * size], file.offset + int(samples[row]) * size)

    def read(into: memoryview, offset: int) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(handle, [into[done:]], offset + done)
            except OSError as error:
                raise _unreadable(file, error.strerror or "reading failed") from error
            if not got:
                raise _unreadable(file, "it is shorter than it was")
            done += got

    return gather


def _unreadable(file: File, why: str) -> UserError:
    return UserError(f"the data in {file.path} cannot be read ({why}): mend that, then resume the run")
