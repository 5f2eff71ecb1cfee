"""`mnist` and `fashion-mnist`: the search, the file names, and the real files where they are."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import Dataset, load, mnist, places
from fastgan.errors import UserError


def same(data: Dataset, arrays: tuple[np.ndarray, np.ndarray]) -> bool:
    assert data.labels is not None
    return np.array_equal(data.images[:, 0].numpy(), arrays[0]) and np.array_equal(data.labels.numpy(), arrays[1])


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("split, stem", [("train", "train"), ("test", "t10k")])
def test_file_names(
    bare: Path, write_mnist: Callable[..., tuple], gz: bool, dotted: bool, split: str, stem: str
) -> None:
    arrays = write_mnist(bare / "here", split=stem, gz=gz, dotted=dotted)
    data = load(f"mnist:{bare / 'here'}", split=split)
    assert same(data, arrays)
    assert data.images.shape == (7, 1, 28, 28) and data.images.dtype == torch.uint8
    assert data.labels is not None and data.labels.dtype == torch.int64
    assert str(bare / "here") in data.source and data.license and len(data.classes) == 10


@pytest.mark.parametrize("sub", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_explicit_folder(bare: Path, write_mnist: Callable[..., tuple], sub: str) -> None:
    arrays = write_mnist(bare / "here" / sub)
    assert same(load("fashion-mnist:here"), arrays)


def test_order_of_search(bare: Path, write_mnist: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place is used when those before it are empty: files are added from the last place to the first."""
    debian = bare / "usr/share/datasets/fashion-mnist"
    family = mnist._FAMILIES["fashion-mnist"]
    monkeypatch.setitem(mnist._FAMILIES, "fashion-mnist", mnist._Family(**{**vars(family), "elsewhere": (debian,)}))
    monkeypatch.setenv("FASTGAN_DATA", str(bare / "given"))
    (bare / "other").mkdir()
    folders = [
        debian,
        bare / "cache/fashion-mnist",
        bare / "data",
        bare / "data/FashionMNIST/raw",
        bare / "data/fashion-mnist",
        bare / "given",
        bare / "given/fashion-mnist",
    ]
    for seed, folder in enumerate(folders):
        arrays = write_mnist(folder, seed=seed)
        assert same(load("fashion-mnist"), arrays), folder
    with pytest.raises(UserError, match=r"other has no train-images-idx3-ubyte\[.gz\]"):
        load("fashion-mnist:other")  # a folder that is named is the only one


def test_debian_folder() -> None:
    assert mnist._FAMILIES["fashion-mnist"].elsewhere == (Path("/usr/share/datasets/fashion-mnist"),)


def test_half_a_pair_is_no_find(bare: Path, write_mnist: Callable[..., tuple]) -> None:
    write_mnist(bare / "data/mnist")
    (bare / "data/mnist/train-labels-idx1-ubyte.gz").unlink()
    arrays = write_mnist(bare / "cache/mnist", seed=1)
    assert same(load("mnist"), arrays)


def test_nowhere(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_DATA", str(bare / "given"))
    with pytest.raises(UserError) as caught:
        load("mnist", allow_download=False)
    text = str(caught.value)
    for place in ("given/mnist", "given,", "data/mnist", "cache/mnist", "not allowed", "mnist:FOLDER", "FASTGAN_DATA"):
        assert place in text
    assert "\n" not in text
    assert not (bare / "cache").exists()


def test_folder_mistakes(bare: Path, write_mnist: Callable[..., tuple]) -> None:
    write_mnist(bare / "here")
    with pytest.raises(UserError, match="is not a folder: check the path"):
        load("mnist:nowhere")
    with pytest.raises(UserError, match="is not a folder: give the folder, here"):
        load("mnist:here/train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=r"no t10k-images-idx3-ubyte\[.gz\]"):
        load("mnist:here", split="test")


def test_images_without_their_labels(bare: Path, write_mnist: Callable[..., tuple]) -> None:
    write_mnist(bare / "here", count=7)
    write_mnist(bare / "there", count=8)
    (bare / "there/train-labels-idx1-ubyte.gz").replace(bare / "here/train-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match="hold 7 images and 8 labels"):
        load("mnist:here")


def test_label_out_of_range(bare: Path, write_mnist: Callable[..., tuple], to_idx: Callable[..., bytes]) -> None:
    write_mnist(bare / "here", count=3, gz=False)
    (bare / "here/train-labels-idx1-ubyte").write_bytes(to_idx(np.array([1, 10, 3], np.uint8)))
    with pytest.raises(UserError, match="has the label 10"):
        load("mnist:here")


def test_the_other_family(bare: Path, write_mnist: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both families use the same file names; labels that are known to be the other's are not taken."""
    write_mnist(bare / "here")
    digest = hashlib.sha256(gzip.decompress((bare / "here/train-labels-idx1-ubyte.gz").read_bytes())).hexdigest()
    monkeypatch.setitem(mnist._FAMILIES["mnist"].sha256, "train-labels-idx1-ubyte", digest)
    with pytest.raises(UserError, match="holds mnist, not fashion-mnist"):
        load("fashion-mnist:here")
    assert len(load("mnist:here")) == 7


def test_padded_for_32(bare: Path, write_mnist: Callable[..., tuple]) -> None:
    images, _ = write_mnist(bare / "here")
    data = load("mnist:here", image_size=32, channels=1)
    assert np.array_equal(data.images[:, 0].numpy(), np.pad(images, ((0, 0), (2, 2), (2, 2))))


@pytest.mark.parametrize(
    "platform, variables, expected",
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/fastgan"),
        ("linux", {"HOME": "/home/a"}, "/home/a/.cache/fastgan"),
        ("darwin", {"HOME": "/home/a"}, "/home/a/Library/Caches/fastgan"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/fastgan"),
        ("linux", {"FASTGAN_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict, expected: str) -> None:
    for name in ("FASTGAN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert places.cache_folder() == Path(expected)


CANONICAL_MD5 = {
    "mnist": {
        "train-images": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels": "a25bea736e30d166cdddb491f175f624",
        "t10k-images": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


@pytest.mark.parametrize("split, stem, count", [("train", "train", 60_000), ("test", "t10k", 10_000)])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(to_idx: Callable[..., bytes], name: str, split: str, stem: str, count: int) -> None:
    try:
        data = load(name, split=split, allow_download=False)
    except UserError:
        pytest.skip(f"no {name} here: set FASTGAN_DATA to a folder that holds {name}/ to test with the real files")
    assert data.labels is not None
    assert data.images.shape == (count, 1, 28, 28)
    contents = {"images": to_idx(data.images[:, 0].numpy()), "labels": to_idx(data.labels.to(torch.uint8).numpy())}
    for kind, content in contents.items():
        assert hashlib.md5(content).hexdigest() == CANONICAL_MD5[name][f"{stem}-{kind}"]
        file = next(file for file in mnist._SIZES if file.startswith(f"{stem}-{kind}"))
        assert hashlib.sha256(content).hexdigest() == mnist._FAMILIES[name].sha256[file]
        assert len(content) == mnist._SIZES[file]
