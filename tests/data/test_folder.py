"""`folder:PATH`: what is found and in which order, what becomes of it, and that it is packed once, whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgan.data import load, packing
from fastgan.errors import UserError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(6)


def pixels(size: int = 8, channels: int = 3) -> np.ndarray:
    shape = (size, size, channels) if channels > 1 else (size, size)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, array: np.ndarray | None = None) -> np.ndarray:
    array = pixels() if array is None else array
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture
def pictures(bare: Path) -> Path:
    (bare / "pictures").mkdir()
    return bare / "pictures"


@pytest.fixture
def packs(bare: Path) -> Callable[[], list[Path]]:
    return lambda: sorted(path.parent for path in (bare / "cache" / "packed").glob("*/*/pack.json"))


def quietly(*arguments: Any, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(*arguments, **more)


def test_names_and_order(pictures: Path) -> None:
    """By code point of the relative path; any depth; upper-case endings; names that no list would have."""
    names = ["Z.png", "a.PNG", "b/c/d.png", "b/e.png", "b.png", "z\nz.png", "ä.png"]
    arrays = {name: put(pictures / name) for name in names}
    data = quietly(f"folder:{pictures}")
    assert data.sample_shape == (3, 8, 8) and data.images.dtype == torch.uint8 and data.images.is_contiguous()
    for at, name in enumerate(sorted(names)):
        assert np.array_equal(data.images[at].permute(1, 2, 0).numpy(), arrays[name]), name
    assert data.labels is None and data.resident


def test_litter_and_other_files_are_passed_over(pictures: Path) -> None:
    put(pictures / "one.png")
    for litter in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png", "__MACOSX/._one.png", ".git/x.png"):
        (pictures / litter).parent.mkdir(exist_ok=True)
        (pictures / litter).write_bytes(b"no picture")
    assert len(quietly(f"folder:{pictures}")) == 1


def test_subfolders_are_classes(pictures: Path) -> None:
    for name in ("dog/1.png", "cat/deep/2.png", "cat/3.png"):
        put(pictures / name)
    data = quietly(f"folder:{pictures}")
    assert data.classes == ("cat", "dog") and data.labels is not None and data.labels.tolist() == [0, 0, 1]
    put(pictures / "stray.png")
    with pytest.warns(UserWarning, match="has changed"):
        assert load(f"folder:{pictures}").labels is None


def test_one_subfolder_is_no_class(pictures: Path) -> None:
    put(pictures / "img" / "1.png")
    assert quietly(f"folder:{pictures}").labels is None


def test_grey_stays_grey_until_a_colour_comes(pictures: Path) -> None:
    grey = [put(pictures / f"{at}.png", pixels(channels=1)) for at in range(5)]
    data = quietly(f"folder:{pictures}")
    assert data.sample_shape == (1, 8, 8) and np.array_equal(data.images[3, 0].numpy(), grey[3])
    colour = put(pictures / "9.png")
    put(pictures / "99.png", grey[0])
    with pytest.warns(UserWarning, match="has changed"):
        data = load(f"folder:{pictures}")
    assert data.sample_shape == (3, 8, 8)
    assert np.array_equal(data.images[:5].numpy(), np.stack([np.stack([g] * 3) for g in grey]))
    assert np.array_equal(data.images[5].permute(1, 2, 0).numpy(), colour)
    assert np.array_equal(data.images[6].numpy(), np.stack([grey[0]] * 3))


def test_sizes(pictures: Path, packs: Callable[[], list[Path]]) -> None:
    put(pictures / "a.png", pixels(8))
    put(pictures / "b.png", pixels(9))
    with pytest.raises(UserError, match=r"'a.png' is 8x8, 'b.png' 9x9: set image_size=64"):
        load(f"folder:{pictures}")
    assert packs() == []
    assert load(f"folder:{pictures}", image_size=4).sample_shape == (3, 4, 4)
    assert load(f"folder:{pictures}", image_size=32).sample_shape == (3, 32, 32)
    assert len(packs()) == 2
    for size in (0, -1, 100_000):
        with pytest.raises(UserError, match="image_size must be from 1"):
            load(f"folder:{pictures}", image_size=size)


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 9, 3)])
def test_one_picture(pictures: Path, shape: tuple[int, ...]) -> None:
    put(pictures / "a.png", RNG.integers(0, 256, shape, dtype=np.uint8))
    if shape[0] == shape[1]:
        assert quietly(f"folder:{pictures}").sample_shape == (3, 1, 1)
    else:
        with pytest.raises(UserError, match=r"'a.png' is 9x4: set image_size"):
            load(f"folder:{pictures}")
    assert quietly(f"folder:{pictures}", image_size=16).sample_shape == (3, 16, 16)


def test_packed_once_as_numpy_reads_it(
    pictures: Path, packs: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(pictures / "x" / "a.png"), put(pictures / "y" / "b.png")
    first = quietly(f"folder:{pictures}")
    monkeypatch.setattr(packing.Item, "read", lambda *_: pytest.fail("decoded again"))
    again = quietly(f"folder:{pictures}")
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    (pack,) = packs()
    stored = np.load(pack / "images.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(stored, np.memmap) and np.array_equal(stored, again.images.numpy())
    assert again.images.data_ptr() % 16 == 0  # what a kernel or a copy reads by vectors


@pytest.mark.parametrize("change", ["added", "removed", "rewritten", "renamed", "permitted"])
def test_a_changed_folder_is_packed_anew(pictures: Path, packs: Callable[[], list[Path]], change: str) -> None:
    old = [put(pictures / f"{at}.png") for at in range(3)]
    load(f"folder:{pictures}")
    load(f"folder:{pictures}", image_size=4)
    former = packs()
    if change == "added":
        put(pictures / "7.png")
    elif change == "removed":
        (pictures / "0.png").unlink()
    elif change == "renamed":
        (pictures / "0.png").rename(pictures / "5.png")
    elif change == "permitted":  # what could not be read and was skipped is there from now on
        (pictures / "0.png").chmod(0o400)
    else:
        put(pictures / "0.png", 255 - old[0])
        os.utime(pictures / "0.png", ns=(1, 1))
    with pytest.warns(UserWarning, match="has changed since it was packed"):
        data = load(f"folder:{pictures}")
    names = sorted(path.name for path in pictures.iterdir())
    shown = [np.asarray(Image.open(pictures / name)) for name in names]
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(shown))
    assert len(packs()) == 1 and packs()[0] not in former


def test_bad_files_are_listed_and_skipped(pictures: Path) -> None:
    put(pictures / "good.png")
    whole = (pictures / "good.png").read_bytes()
    for at in range(12):
        (pictures / f"bad{at:02}.png").write_bytes(whole[: 30 + at])
    for _ in range(2):  # from the pack, too
        with pytest.warns(UserWarning, match=r"12 skipped: 'bad00.png' \(.+\), .*'bad09.png' \(.+\), and 2 more"):
            assert len(load(f"folder:{pictures}")) == 1
    (pictures / "good.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"not one of 12 pictures can be read: 'bad00.png'"):
            load(f"folder:{pictures}")


def test_nothing_to_read(bare: Path, pictures: Path) -> None:
    notes = pictures / "notes.txt"
    notes.write_text("hello")
    for path, why in ((pictures, "its 1 other files"), (bare / "none", "not there"), (notes, "no folder")):
        with pytest.raises(UserError, match=why):
            load(f"folder:{path}")
    with pytest.raises(UserError, match="no test split"):
        load(f"folder:{pictures}", split="test")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_followed_but_not_in_circles(bare: Path, pictures: Path) -> None:
    put(bare / "elsewhere" / "x.png")
    put(pictures / "a" / "1.png")
    (pictures / "a" / "loop").symlink_to(pictures)
    (pictures / "b").symlink_to(bare / "elsewhere")
    (pictures / "b2").symlink_to(bare / "elsewhere")
    (pictures / "gone.png").symlink_to(bare / "nowhere.png")
    os.mkfifo(pictures / "pipe.png")
    with pytest.warns(UserWarning, match=r"2 skipped: 'gone.png' \(No such file.*'pipe.png' \(no regular file\)"):
        data = load(f"folder:{pictures}")
    assert len(data) == 2 and data.classes == ("a", "b")


def test_files_that_vanish_are_skipped(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(3):
        put(pictures / f"{at}.png")
    pack_into = packing.pack_into

    def late(*arguments: Any) -> Any:
        (pictures / "1.png").unlink()
        return pack_into(*arguments)

    monkeypatch.setattr("fastgan.data.pack.pack_into", late)
    with pytest.warns(UserWarning, match=r"1 skipped: '1.png' \(No such file"):
        assert len(load(f"folder:{pictures}")) == 2


def test_no_room_is_said_before_anything_is_written(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(pictures / "a.png")
    usage = shutil.disk_usage(pictures)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=r"1 pictures of 8x8 take 0\.0 MB in the cache"):
        load(f"folder:{pictures}")


def test_a_failure_leaves_nothing_behind(bare: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(pictures / "a.png")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): set FASTGAN_CACHE"):
        load(f"folder:{pictures}")
    assert [path for path in (bare / "cache").rglob("*") if path.is_file()] == []


def test_what_a_killed_start_left_is_cleared(pictures: Path, packs: Callable[[], list[Path]]) -> None:
    put(pictures / "a.png")
    quietly(f"folder:{pictures}")
    (left := packs()[0].parent / ".writing-0").mkdir()
    (left / "images.npy").write_bytes(b"half")
    quietly(f"folder:{pictures}", image_size=4)  # nothing has changed, and nothing is said
    assert not left.exists() and len(packs()) == 2


@pytest.mark.parametrize("damage", ["images.npy", "pack.json", "labels.npy"])
def test_a_damaged_pack_is_made_anew(pictures: Path, packs: Callable[[], list[Path]], damage: str) -> None:
    put(pictures / "x" / "a.png"), put(pictures / "y" / "b.png")
    expected = load(f"folder:{pictures}").images.clone()
    victim = packs()[0] / damage
    victim.write_bytes(victim.read_bytes()[:-5])
    assert torch.equal(load(f"folder:{pictures}").images, expected)
    victim.unlink()
    assert torch.equal(load(f"folder:{pictures}").images, expected)
    if damage == "images.npy":
        np.save(victim, expected[:1].numpy())
        assert torch.equal(load(f"folder:{pictures}").images, expected)


@pytest.mark.full
def test_several_processes_pack_once(pictures: Path, packs: Callable[[], list[Path]]) -> None:
    for at in range(300):
        put(pictures / f"{at}.png", pixels(64))
    code = (
        "import sys, fastgan.data.packing as p\nfrom fastgan.data import load\n"
        "inner = p.pack_into\n"
        "import fastgan.data.pack as k\n"
        "k.pack_into = lambda *a: (print('packs', flush=True), inner(*a))[1]\n"
        "print(load('folder:' + sys.argv[1], image_size=32).images.sum().item())"
    )
    children = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, pictures], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [child.communicate()[0].split() for child in children]
    assert sum("packs" in words for words in said) == 1 and len({words[-1] for words in said}) == 1
    assert len(packs()) == 1 and not list(packs()[0].parent.glob(".writing*"))


def test_threads_wait_for_each_other(pictures: Path, packs: Callable[[], list[Path]]) -> None:
    for at in range(20):
        put(pictures / f"{at}.png")
    sums: list[int] = []

    def read() -> None:
        sums.append(int(load(f"folder:{pictures}").images.sum()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=read) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(sums) == 2 and sums[0] == sums[1] and len(packs()) == 1


def test_a_batch_is_gathered_from_the_map(pictures: Path) -> None:
    from fastgan.ops import real_batch

    for at in range(5):
        put(pictures / f"{at}.png")
    data = quietly(f"folder:{pictures}")
    batch = data.batch(torch.tensor([3, 1]))
    assert torch.equal(batch, data.images[[3, 1]].float() / 127.5 - 1)
    drawn = real_batch(data.images, torch.tensor(0), batch_size=5, seed=0, site=(1, 0))
    assert isinstance(drawn, torch.Tensor) and drawn.shape == (5, 3, 8, 8)


@pytest.mark.gpu
def test_a_pack_goes_to_the_gpu(pictures: Path) -> None:
    for at in range(5):
        put(pictures / f"{at}.png")
    data = quietly(f"folder:{pictures}", device="cuda")
    assert data.resident and data.images.is_cuda and data.images.is_contiguous()
    assert torch.equal(data.images.cpu(), quietly(f"folder:{pictures}").images)


def test_many_files_take_no_longer_each(bare: Path, full: bool) -> None:
    """A listing is linear in the number of files: names alone, none is read."""
    from time import perf_counter

    from fastgan.data.folder import _found

    seconds = []
    for count in (20_000, 100_000) if full else (400, 2_000):
        folder = bare / str(count)
        for at in range(count):
            (folder / str(at % 100)).mkdir(parents=True, exist_ok=True)
            (folder / str(at % 100) / f"{at}.png").touch()
        start = perf_counter()
        assert len(_found(str(folder)).listing()[0]) == count
        seconds.append(perf_counter() - start)
    assert seconds[1] < 15 * seconds[0]  # 25 times were quadratic
