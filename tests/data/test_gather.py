"""Samples gathered from memory and from a file: the right ones, and what a file that is no more what it was does."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import Dataset, File, load
from fastgan.data.gather import gathering
from fastgan.errors import UserError

SHAPE = (3, 5, 7)


def mapped(path: Path, samples: np.ndarray) -> Dataset:
    """A data set whose samples are a read-only memory map of ``path``."""
    np.save(path, samples)
    array = np.load(path, mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Dataset("mapped", torch.from_numpy(array), file=File(path, array.offset))


def pixels(n: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def gathered(data: Dataset, index: torch.Tensor) -> np.ndarray:
    into = np.full((len(index), *data.sample_shape), 77, data.images.numpy().dtype)
    with gathering(data) as gather:
        gather(index, into)
    return into


@pytest.mark.parametrize("points", [False, True])
def test_the_same_samples_from_memory_and_from_a_file(points: bool, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((40, 2), np.float32) if points else pixels()
    index = torch.tensor([39, 0, 7, 7, 3])
    for data in (Dataset("plain", torch.from_numpy(samples)), mapped(tmp_path / "a.npy", samples)):
        assert np.array_equal(gathered(data, index), samples[index.numpy()])


def test_a_file_is_asked_for_what_is_needed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample by sample, in the order of the file; what comes in parts is put together."""
    data, asked, read = mapped(tmp_path / "a.npy", pixels()), [], os.preadv

    def in_parts(handle: int, buffers: list[memoryview], offset: int) -> int:
        asked.append(offset)
        return read(handle, [buffers[0][:60]], offset)

    monkeypatch.setattr(os, "preadv", in_parts)
    assert np.array_equal(gathered(data, torch.tensor([9, 2])), pixels()[[9, 2]])
    begin, size = data.file.offset, int(np.prod(SHAPE))
    assert asked == [begin + 2 * size, begin + 2 * size + 60, begin + 9 * size, begin + 9 * size + 60]


def test_packed_pictures_are_read_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for at, picture in enumerate(pixels(12)[:, 0]):
        image.fromarray(picture).resize((8, 8)).save(tmp_path / f"pictures/{at}.png")
    data = load(f"folder:{tmp_path / 'pictures'}", image_size=8)
    assert data.file is not None and data.file.path.is_relative_to(tmp_path / "cache")
    assert np.array_equal(gathered(data, torch.tensor([9, 2])), data.images[[9, 2]].numpy())


def test_where_a_system_cannot_read_so_the_map_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mapped(tmp_path / "a.npy", pixels())
    monkeypatch.delattr(os, "preadv")
    assert np.array_equal(gathered(data, torch.tensor([9, 2])), pixels()[[9, 2]])


def test_a_file_that_is_gone_or_shorter_is_named_when_it_is_opened(tmp_path: Path) -> None:
    data = mapped(tmp_path / "a.npy", pixels())
    os.truncate(tmp_path / "a.npy", os.path.getsize(tmp_path / "a.npy") - 1)
    with pytest.raises(UserError, match=r"a\.npy cannot be read \(it is shorter than it was"), gathering(data):
        pass
    (tmp_path / "a.npy").unlink()
    with pytest.raises(UserError, match=r"a\.npy cannot be read \(No such file"), gathering(data):
        pass


def test_a_file_that_is_cut_short_or_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its map the first would end the process."""
    data, into = mapped(tmp_path / "a.npy", pixels()), np.empty((1, *SHAPE), np.uint8)
    with gathering(data) as gather:
        os.truncate(tmp_path / "a.npy", data.file.offset + 10 * int(np.prod(SHAPE)))
        gather(torch.tensor([9]), into)
        with pytest.raises(UserError, match="shorter than it was"):
            gather(torch.tensor([10]), into)

        def fails(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(UserError, match=r"a\.npy cannot be read \(Input/output error"):
            gather(torch.tensor([9]), into)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(UserError), gathering(data):
        pass
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
