"""`npz:PATH` and `npy:PATH`: arrays of one's own as numpy saves them, read without ever unpickling anything."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastgan.data.bounded import DEFLATE_RATIO, Stream, one_line, opened, read_exactly
from fastgan.data.dataset import Dataset
from fastgan.data.intake import CHANNELS
from fastgan.errors import UserError

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK"
_LONGEST_HEADER = 10_000  # bytes; numpy's own limit


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Read ``images`` and, where they are there, ``labels``; the file's first bytes tell .npz from .npy.

    Images are uint8 NHWC (NCHW where only that can be meant, or (n, H, W)) or floats NCHW in [-1, 1]; floats (n, d)
    are points.
    """
    if split != "train":
        raise UserError(f"{name}:{path} has no {split} split: give the file of that split as the path")
    file = Path(path or "").expanduser()
    images, labels = _read_file(file)
    # The documented order wins where a shape such as (n, 3, 8, 3) could be read either way.
    pixels_last = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in CHANNELS
    return Dataset.from_tensor(
        torch.from_numpy(images),
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        name=f"{name}:{path}",
        layout="NHWC" if pixels_last else None,
    )


def _read_file(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    with opened(path) as file:
        magic = file.read(len(_NPY_MAGIC))
        file.seek(0)
        if magic == _NPY_MAGIC:
            return _read_array(file, os.fstat(file.fileno()).st_size, path, "images"), None
        if not magic.startswith(_ZIP_MAGIC):
            raise UserError(f"{path} is neither .npz nor .npy: save the images with numpy.savez(PATH, images=...)")
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "images" not in entries:
                keys = ", ".join(map(repr, list(entries)[:10])) or "none"
                raise UserError(f"{path} has no key 'images' (keys: {keys}): save with numpy.savez(PATH, images=...)")
            images = _read_entry(archive, entries["images"], path, "images")
            labels = _read_entry(archive, entries["labels"], path, "labels") if "labels" in entries else None
            return images, labels


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, key: str) -> npt.NDArray[Any]:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path} is compressed in a way that numpy never writes: save it with numpy.savez_compressed")
    if entry.file_size > path.stat().st_size * DEFLATE_RATIO:
        raise UserError(f"{path} promises {entry.file_size} bytes of {key!r}, more than it can hold: get a fresh copy")
    with archive.open(entry) as stream:
        return _read_array(stream, entry.file_size, path, key)


def _read_array(stream: Stream, held: int, path: Path, key: str) -> npt.NDArray[Any]:
    """Read the array whose .npy form is the ``held`` bytes of ``stream``, its header checked against that length."""
    shape, fortran_order, dtype, header_size = _read_header(stream)
    readable = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8") if key == "labels" else ("u1", "f2", "f4", "f8")
    if f"{dtype.kind}{dtype.itemsize}" not in readable:
        what = "Python objects, which are never unpickled" if dtype.hasobject else str(dtype)
        mend = "integers" if key == "labels" else "uint8 or floats in [-1, 1]"
        raise UserError(f"{path}: {key!r} holds {what}: save it as {mend}")
    promised, rest = math.prod(shape) * dtype.itemsize, held - header_size
    if promised != rest:
        raise UserError(
            f"{path}: {key!r} of shape {shape} takes {promised} bytes and {rest} are there: the file is damaged or cut "
            "short, get a fresh copy"
        )
    flat = np.frombuffer(read_exactly(stream, promised, path), dtype)
    array = flat.reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(stream: Stream) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran order, dtype and the header's own length, from no more bytes than are needed."""
    start = stream.read(12)
    if len(start) < 12 or not start.startswith(_NPY_MAGIC) or start[6] not in (1, 2):
        raise ValueError("no .npy header of version 1 or 2")
    first = start[6] == 1
    size = 10 + struct.unpack_from("<H", start, 8)[0] if first else 12 + struct.unpack_from("<I", start, 8)[0]
    if not 12 <= size <= _LONGEST_HEADER:
        raise ValueError(f"a .npy header of {size} bytes")
    header = io.BytesIO(start + stream.read(size - 12))
    try:
        version = np.lib.format.read_magic(header)
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = parse(header)
    except Exception as error:  # whatever numpy's parser makes of a foreign header, the header is at fault
        raise ValueError(f"its .npy header cannot be parsed: {one_line(error)[:200]}") from error
    if any(side < 0 for side in shape):
        raise ValueError(f"a negative side in the shape {shape}")
    return shape, fortran_order, dtype, size
