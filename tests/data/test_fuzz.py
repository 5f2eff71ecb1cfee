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

from fastgan.data import Dataset

Mutate = Callable[..., bytes]
Outcome = Callable[[str], Dataset | None]

RNG = np.random.default_rng(9)
IMAGES = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 4, dtype=np.uint8)


def saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def alone(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_idx(
    bare: Path, scratch: Path, to_idx: Callable[..., bytes], mutate: Mutate, outcome: Outcome, full: bool, packed: bool
) -> None:
    """Raw bytes that read at all are what the file holds; a gzip stream that reads at all is the original."""
    images, labels = scratch / "train-images-idx3-ubyte", scratch / "train-labels-idx1-ubyte"
    contents = {images: to_idx(IMAGES), labels: to_idx(LABELS)}
    stored = {path: gzip.compress(content, mtime=0) if packed else content for path, content in contents.items()}
    for seed in range(50_000 if full else 1_000):
        rng = random.Random(seed)
        victim = rng.choice((images, labels))
        for path, content in stored.items():
            path.write_bytes(mutate(content, rng) if path == victim else content)
        data = outcome(f"mnist:{scratch}")
        if data is not None:
            pixels = (contents[images] if packed else images.read_bytes())[16:]
            assert data.images.numpy().tobytes() == pixels


def test_npz(scratch: Path, mutate: Mutate, outcome: Outcome, full: bool) -> None:
    """The archive's checksums see to it that pixels which read at all are the original ones."""
    whole = saved(images=IMAGES[..., None], labels=LABELS)
    original = torch.from_numpy(IMAGES).unsqueeze(1)
    read = 0
    for seed in range(100_000 if full else 2_000):
        (scratch / "x.npz").write_bytes(mutate(whole, random.Random(seed)))
        data = outcome(f"npz:{scratch / 'x.npz'}")
        read += data is not None
        assert data is None or torch.equal(data.images, original)
    assert read > 0  # names, dates and the like may change without harm


def test_npy(scratch: Path, mutate: Mutate, outcome: Outcome, full: bool) -> None:
    floats = RNG.uniform(-1, 1, (3, 1, 4, 5)).astype(np.float32)
    for seed in range(100_000 if full else 2_000):
        whole = alone(floats if seed % 2 else IMAGES)
        (scratch / "x.npy").write_bytes(mutate(whole, random.Random(seed)))
        data = outcome(f"npy:{scratch / 'x.npy'}")
        if data is not None and data.images.dtype == torch.float32:
            assert bool((data.images.abs() <= 1).all())
