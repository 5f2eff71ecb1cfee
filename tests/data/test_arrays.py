"""`npz:PATH` and `npy:PATH`: arrays as numpy saves them, and files that are not what they say."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgan.data import bounded, load
from fastgan.errors import UserError

RNG = np.random.default_rng(4)
PIXELS = RNG.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
FLOATS = RNG.uniform(-1, 1, (6, 3, 9, 8)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def npy_bytes(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def npy_header(shape: str, descr: str = "'|u1'", *, size: int | None = None, version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = len(text) if size is None else size
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", length) + text


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_npz(tmp_path: Path, save: Any, dtype: Any) -> None:
    save(tmp_path / "x.npz", images=PIXELS, labels=LABELS.astype(dtype))
    data = load(f"npz:{tmp_path / 'x.npz'}", image_size=None, channels=3)
    assert np.array_equal(data.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert data.images.is_contiguous() and data.sample_shape == (3, 9, 8)
    assert data.labels is not None and data.labels.tolist() == LABELS.tolist()
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.asarray(FLOATS, dtype, order=order)
    np.savez(tmp_path / "x.npz", images=array)
    data = load(f"npz:{tmp_path / 'x.npz'}")
    assert data.images.dtype == torch.float32 and data.labels is None
    assert np.array_equal(data.images.numpy(), array.astype(np.float32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy(tmp_path: Path, version: tuple[int, int]) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(PIXELS, version=version))
    assert np.array_equal(load(f"npy:{tmp_path / 'x.npy'}").images.numpy(), PIXELS.transpose(0, 3, 1, 2))


def test_shapes(tmp_path: Path) -> None:
    for array, stored in (
        (PIXELS[..., 0], (6, 1, 9, 8)),  # grey without an axis of its own
        (PIXELS[:, :3], (6, 3, 3, 8)),  # both ways are thinkable: NHWC is what is documented
        (PIXELS.transpose(0, 3, 1, 2), (6, 3, 9, 8)),  # only NCHW can be meant
        (FLOATS.reshape(6, -1), (6, 216)),
    ):
        np.save(tmp_path / "x.npy", array)
        assert tuple(load(f"npy:{tmp_path / 'x.npy'}").images.shape) == stored


def test_the_kind_is_told_by_the_first_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS)
    (tmp_path / "x.npz").replace(tmp_path / "x")
    assert len(load(f"npy:{tmp_path / 'x'}")) == 6


class Trap:
    """Unpickling it fails the test."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("unpickled",)


def test_never_unpickles(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", images=np.array([Trap()], dtype=object))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap()))
    for spec, message in (("npy:x.npy", "never unpickled"), ("npz:x.npz", "never unpickled"), ("npz:y.npz", "neither")):
        kind, name = spec.split(":")
        with pytest.raises(UserError, match=message):
            load(f"{kind}:{tmp_path / name}")


def nan() -> np.ndarray:
    array = FLOATS.copy()
    array[3, 1, 2, 2] = np.nan
    return array


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, r"no key 'images' \(keys: none\)"),
        ({"x": PIXELS, "y": LABELS}, r"no key 'images' \(keys: 'x', 'y'\)"),
        ({"images": PIXELS.astype(np.int64)}, "'images' holds int64: save it as uint8 or floats"),
        ({"images": PIXELS > 3}, "'images' holds bool"),
        ({"images": np.array(["a", "b"])}, "'images' holds <U1"),
        ({"images": np.zeros(3, [("a", "u1")])}, "'images' holds"),
        ({"images": PIXELS[0, 0, 0, 0]}, r"not \(\)"),
        ({"images": PIXELS[:, :, :, :2]}, "is not NHWC or NCHW"),
        ({"images": FLOATS.transpose(0, 2, 3, 1)}, "looks like NHWC"),
        ({"images": PIXELS[:0]}, "nothing is in it"),
        ({"images": nan()}, "NaN or infinite"),
        ({"images": FLOATS * 127}, r"must lie in \[-1, 1\]"),
        ({"images": PIXELS, "labels": LABELS[:5]}, r"need labels of shape \(6,\), not \(5,\)"),
        ({"images": PIXELS, "labels": LABELS[:, None]}, r"not \(6, 1\)"),
        ({"images": PIXELS, "labels": LABELS - 1}, "reach from -1"),
        ({"images": PIXELS, "labels": LABELS.astype(np.uint64) + 2**63}, "labels reach from -"),
        ({"images": PIXELS, "labels": LABELS * 1.0}, "'labels' holds float64: save it as integers"),
        ({"images": PIXELS, "labels": np.array([None] * 6)}, "never unpickled"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        load(f"npz:{tmp_path / 'x.npz'}")
    assert "\n" not in str(caught.value)


BODY = bytes(100)
BROKEN = {
    "no file": (None, "is not there"),
    "empty file": (b"", "neither .npz nor .npy"),
    "text": (b"images,labels\n", "neither .npz nor .npy"),
    "only a magic": (b"\x93NUMPY", "damaged"),
    "cut header": (npy_header("(10, 10)")[:30], "damaged"),
    "cut data": (npy_header("(1, 10, 10)") + BODY[:-1], "takes 100 bytes and 99 are there"),
    "trailing data": (npy_header("(1, 10, 10)") + BODY + b"x", "takes 100 bytes and 101 are there"),
    "absurd shape": (npy_header("(1099511627776, 1099511627776, 1)") + BODY, "takes 1208925819614629174706176 bytes"),
    "negative": (npy_header("(-1, -10, 10)") + BODY, "negative side"),
    "no shape": (npy_header("None") + BODY, "cannot be parsed"),
    "no dtype": (npy_header("(1, 10, 10)", "'nonsense'") + BODY, "cannot be parsed"),
    "code": (npy_header("__import__('os').abort()") + BODY, "cannot be parsed"),
    "deep": (npy_header("(" * 5000) + BODY, "cannot be parsed"),
    "version 3": (npy_header("(1, 10, 10)", version=3) + BODY, "version 1 or 2"),
    "endless header": (npy_header("(1, 10, 10)", size=2**31, version=2) + BODY, "header of 2147483660 bytes"),
    "a zip's first bytes": (b"PK\x03\x04" + BODY, "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(f"npy:{tmp_path / 'x'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "no file"])
def test_broken_entries(tmp_path: Path, case: str) -> None:
    path = zipped(tmp_path / "x.npz", {"images.npy": BROKEN[case][0] or b""})
    with pytest.raises(UserError):
        load(f"npz:{path}")


def test_damaged_zip(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS)
    whole = (tmp_path / "x.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(PIXELS.tobytes()[500:510], bytes(10))):
        assert damaged != whole
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load(f"npz:{tmp_path / 'x.npz'}")


def test_other_compression(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.npz", {"images.npy": npy_bytes(PIXELS)}, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="numpy never writes"):
        load(f"npz:{path}")


@pytest.mark.parametrize("promise", ["(1, 10, 10)", "(1024, 256, 256)", "(1048576, 1048576, 1048576)"])
def test_zip_bomb(tmp_path: Path, promise: str) -> None:
    """64 MB of zeros in 64 KB: without a header that names all of them they are not unpacked."""
    path = zipped(tmp_path / "x.npz", {"images.npy": npy_header(promise) + bytes((1 << 26) + 1)})
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="are there"):
            load(f"npz:{path}")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_entry_that_claims_more_than_the_file_can_hold(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.npz", {"images.npy": npy_header("(1, 10, 10)") + BODY}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    size = len(npy_header("(1, 10, 10)") + BODY)
    where = content.index(b"PK\x01\x02") + 24  # the central directory's uncompressed size
    assert struct.unpack_from("<I", content, where)[0] == size
    path.write_bytes(content[:where] + struct.pack("<I", 2**31) + content[where + 4 :])
    with pytest.raises(UserError, match="promises 2147483648 bytes"):
        load(f"npz:{path}")


def test_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS)
    monkeypatch.setattr(bounded, "available_memory", lambda: PIXELS.nbytes - 1)
    with pytest.raises(UserError, match="memory are free"):
        load(f"npz:{tmp_path / 'x.npz'}")


def test_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no test split"):
        load(f"npz:{tmp_path / 'x.npz'}", split="test")
