"""The IDX reader: what it reads, and that no header is believed before the bytes are there."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import bounded
from fastgan.data.idx import read_idx
from fastgan.errors import UserError

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 4, 6), dtype=np.uint8)


@pytest.mark.parametrize("name", ["x", "x.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_reads(tmp_path: Path, to_idx: Callable[..., bytes], name: str, packed: bool) -> None:
    """The first bytes tell a gzipped file, whatever its name is."""
    content = to_idx(IMAGES)
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    read = read_idx(tmp_path / name, ndim=3)
    assert np.array_equal(read, IMAGES) and read.dtype == np.uint8 and read.flags.writeable


def test_reads_many_chunks(tmp_path: Path, to_idx: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CHUNK", 7)
    (tmp_path / "x").write_bytes(gzip.compress(to_idx(IMAGES)))
    assert np.array_equal(read_idx(tmp_path / "x", ndim=3), IMAGES)


def header(*sizes: int, code: int = 0x08) -> bytes:
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


HUGE = header(2**32 - 1, 2**32 - 1, 2**32 - 1)
BROKEN = {
    "nothing": (b"", "not an IDX file"),
    "three bytes": (b"\0\0\x08", "not an IDX file"),
    "text": (b"<html>not found</html>", "not an IDX file"),
    "unknown code": (header(1, 1, 1, code=0x0A) + b"x", "not an IDX file"),
    "other dtype": (header(1, 1, 1, code=0x0D) + bytes(4), "holds float32: only unsigned bytes"),
    "other axes": (header(5) + bytes(5), "has 1 axes where 3 are wanted"),
    "cut header": (header(5, 4, 6)[:-2], "ends within its header"),
    "empty": (header(0, 28, 28), "is empty"),
    "cut": (header(5, 4, 6) + bytes(119), "is cut short"),
    "trailing": (header(5, 4, 6) + bytes(121), "goes on after the 120 bytes"),
    "huge": (HUGE + bytes(100), "is cut short"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_broken(tmp_path: Path, case: str, packed: bool) -> None:
    content, message = BROKEN[case]
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(tmp_path / "x", ndim=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [4, 15, -6, -1])
def test_corrupt_gzip(tmp_path: Path, to_idx: Callable[..., bytes], where: int) -> None:
    packed = bytearray(gzip.compress(to_idx(IMAGES), mtime=0))
    if where == 4:
        del packed[20:]
    else:
        packed[where] ^= 0x55
    (tmp_path / "x").write_bytes(packed)
    with pytest.raises(UserError, match=r"damaged|cut short|IDX|goes on|ends within"):
        read_idx(tmp_path / "x", ndim=3)


@pytest.mark.parametrize(
    "promised, body",
    [
        ((1000, 28, 28), bytes(1 << 26)),  # a bomb
        ((2**31, 2**31, 2**31), bytes(100)),  # more than a gzip stream of that length can hold
        ((150_000, 1000, 1), np.random.default_rng(6).bytes(200_000)),  # as much as it could hold, and does not
    ],
    ids=["bomb", "absurd", "thinkable"],
)
def test_memory_follows_the_file_not_the_header(tmp_path: Path, promised: tuple[int, ...], body: bytes) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(header(*promised) + body))
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            read_idx(tmp_path / "x", ndim=3)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_no_memory(tmp_path: Path, to_idx: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(to_idx(IMAGES))
    monkeypatch.setattr(bounded, "available_memory", lambda: 100)
    with pytest.raises(UserError, match="of memory are free"):
        read_idx(tmp_path / "x", ndim=3)


def test_available_memory_is_plausible() -> None:
    free = bounded.available_memory()
    assert free is None or free > 1 << 26


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        read_idx(tmp_path / "x", ndim=3)
    with pytest.raises(UserError, match="is a folder"):
        read_idx(tmp_path, ndim=3)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"x")

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_idx(tmp_path / "x", ndim=3)
