"""Mutated files: the right answer or one clear line, never another exception."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import Dataset, load
from fastgan.errors import UserError

RNG = np.random.default_rng(9)
IMAGES = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 4, dtype=np.uint8)
SPECIAL = (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"PK\x01\x02", b"PK\x05\x06", b"\x1f\x8b", b"\n", b"'O'", b"-1")


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randrange(1, 12))
        kind = rng.randrange(7)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 3:
            special = rng.choice(SPECIAL)
            data[at : at + len(special)] = special
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 12))
        else:
            del data[at:]
    return bytes(data)


def outcome(spec: str) -> Dataset | None:
    complaint = ""
    try:
        data = load(spec, allow_download=False)
    except UserError as error:
        complaint = str(error)
    if complaint:
        assert len(complaint.splitlines()) == 1 and len(complaint) > 20
        return None
    assert len(data) > 0 and data.images.dim() == 4
    assert data.labels is None or (len(data.labels) == len(data) and int(data.labels.min()) >= 0)
    return data


def saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def alone(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_idx(bare: Path, to_idx: Callable[..., bytes], full: bool, packed: bool) -> None:
    """Raw bytes that read at all are what the file holds; a gzip stream that reads at all is the original."""
    images, labels = bare / "train-images-idx3-ubyte", bare / "train-labels-idx1-ubyte"
    contents = {images: to_idx(IMAGES), labels: to_idx(LABELS)}
    for seed in range(25_000 if full else 90):
        rng = random.Random(seed)
        victim = rng.choice((images, labels))
        for path, content in contents.items():
            stored = gzip.compress(content, mtime=0) if packed else content
            path.write_bytes(mutate(stored, rng) if path == victim else stored)
        data = outcome(f"mnist:{bare}")
        if data is not None:
            pixels = (contents[images] if packed else images.read_bytes())[16:]
            assert data.images.numpy().tobytes() == pixels


def test_npz(tmp_path: Path, full: bool) -> None:
    """The archive's checksums see to it that pixels which read at all are the original ones."""
    whole = saved(images=IMAGES[..., None], labels=LABELS)
    original = torch.from_numpy(IMAGES).unsqueeze(1)
    read = 0
    for seed in range(25_000 if full else 90):
        (tmp_path / "x.npz").write_bytes(mutate(whole, random.Random(seed)))
        data = outcome(f"npz:{tmp_path / 'x.npz'}")
        read += data is not None
        assert data is None or torch.equal(data.images, original)
    assert read > 0  # names, dates and the like may change without harm


def test_npy(tmp_path: Path, full: bool) -> None:
    floats = RNG.uniform(-1, 1, (3, 1, 4, 5)).astype(np.float32)
    for seed in range(25_000 if full else 90):
        whole = alone(floats if seed % 2 else IMAGES)
        (tmp_path / "x.npy").write_bytes(mutate(whole, random.Random(seed)))
        data = outcome(f"npy:{tmp_path / 'x.npy'}")
        if data is not None and data.images.dtype == torch.float32:
            assert bool((data.images.abs() <= 1).all())
