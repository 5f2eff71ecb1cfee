"""The IDX format of MNIST: two zero bytes, a dtype code, the number of axes, big-endian sizes, then the values."""

from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastgan.data.bounded import DEFLATE_RATIO, Stream, opened, read_exactly
from fastgan.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def read_idx(path: Path, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read an array of unsigned bytes with ``ndim`` axes from an IDX file, gzipped or not (its first bytes tell).

    Raises:
        UserError: No such file, not IDX, another dtype or number of axes, nothing in it, too short, too long, or a
            gzip stream that is damaged or unpacks to more than the header promises.
    """
    with opened(path) as file:
        held = os.fstat(file.fileno()).st_size
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            return _read(file, path, ndim, held)
        with gzip.open(file) as stream:
            return _read(stream, path, ndim, held * DEFLATE_RATIO)


def _read(stream: Stream, path: Path, ndim: int, most: int) -> npt.NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise UserError(f"{path} is not an IDX file (it starts with {magic!r}): get a fresh copy")
    if magic[2] != 0x08:
        raise UserError(f"{path} holds {_DTYPES[magic[2]]}: only unsigned bytes are read, convert them to uint8")
    if magic[3] != ndim:
        raise UserError(f"{path} has {magic[3]} axes where {ndim} are wanted: are images and labels mixed up?")
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise UserError(f"{path} ends within its header: get a fresh copy")
    shape = struct.unpack(f">{ndim}I", sizes)
    promised = math.prod(shape)
    if promised == 0:
        raise UserError(f"{path} is empty (shape {shape}): get a fresh copy")
    if promised > most:
        raise UserError(f"{path} is cut short: its header promises {promised} bytes: get a fresh copy")
    return np.frombuffer(read_exactly(stream, promised, path), np.uint8).reshape(shape)
