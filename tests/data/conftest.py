"""IDX files of a few random images, and a house where no data set is and no network is reached."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import Dataset, load, mnist
from fastgan.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    """Write ``array`` as IDX: an implementation of the format that owes nothing to the reader."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def to_idx() -> Callable[..., bytes]:
    return idx_bytes


@pytest.fixture
def write_mnist() -> Callable[..., Arrays]:
    def write(
        folder: Path, *, count: int = 7, split: str = "train", gz: bool = True, dotted: bool = False, seed: int = 0
    ) -> Arrays:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        for array, name in ((images, f"{split}-images-idx3-ubyte"), (labels, f"{split}-labels-idx1-ubyte")):
            name = name.replace("-idx", ".idx") if dotted else name
            content = idx_bytes(array)
            (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(content) if gz else content)
        return images, labels

    return write


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no data set anywhere and mirrors that refuse every connection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTGAN_DATA", raising=False)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name, family in mnist._FAMILIES.items():
        cut_off = dataclasses.replace(family, mirrors=("http://127.0.0.1:1/",), elsewhere=())
        monkeypatch.setitem(mnist._FAMILIES, name, cut_off)
    return tmp_path


@pytest.fixture(scope="session")
def outcome() -> Callable[[str], Dataset | None]:
    """What a data set's name leads to: sound data, or None where one clear line said why not. Anything else fails."""
    return outcome_of


def outcome_of(spec: str) -> Dataset | None:
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
