"""`mnist` and `fashion-mnist`: 60,000 + 10,000 grey images of 28x28 in four IDX files, found on disk or downloaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan.data.dataset import Dataset
from fastgan.data.download import fetch
from fastgan.data.idx import read_idx
from fastgan.data.places import cache_folder, data_folders
from fastgan.errors import UserError

_STEMS = {"train": "train", "test": "t10k"}
_SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}


@dataclass(frozen=True)
class _Family:
    subfolders: tuple[str, ...]  # of a data folder; the second is where torchvision puts the files
    mirrors: tuple[str, ...]
    sha256: dict[str, str]  # of the unpacked files
    classes: tuple[str, ...]
    license: str
    source: str
    elsewhere: tuple[Path, ...] = ()


_FAMILIES = {
    "mnist": _Family(
        subfolders=("mnist", "MNIST/raw"),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        classes=tuple("0123456789"),
        license="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits",
    ),
    "fashion-mnist": _Family(
        subfolders=("fashion-mnist", "FashionMNIST/raw"),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        license="MIT",
        source="H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, Zalando SE, arXiv:1708.07747",
        elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package dataset-fashion-mnist
    ),
}


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Read a split, (n, 1, 28, 28) uint8 with labels 0 ... 9, from ``path`` or from wherever it is found first."""
    family = _FAMILIES[name]
    folders = _given(Path(path).expanduser(), family) if path else _usual(family)
    pair = next(filter(None, (_pair(folder, split) for folder in folders)), None)
    if pair is None and path:
        raise UserError(f"{path} has no {_file(split, 'images')}[.gz] with its labels: give the folder that holds both")
    if pair is None:
        pair = _download(name, family, split, folders, allow_download)
    return _read(name, family, *pair)


def _given(folder: Path, family: _Family) -> list[Path]:
    if not folder.is_dir():
        mend = f"give the folder, {folder.parent}" if folder.exists() else "check the path"
        raise UserError(f"{folder} is not a folder: {mend}")
    return [folder, *(folder / sub for sub in family.subfolders)]


def _usual(family: _Family) -> list[Path]:
    inside = [folder / sub for folder in data_folders() for sub in (*family.subfolders, ".")]
    return [*inside, *family.elsewhere]


def _file(split: str, kind: str) -> str:
    return f"{_STEMS[split]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def _pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The images' and the labels' file of a split, where the folder has both."""
    found = []
    for kind in ("images", "labels"):
        name = _file(split, kind)
        spellings = [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        found += [path for path in (folder / spelling for spelling in spellings) if path.is_file()][:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _download(name: str, family: _Family, split: str, looked: list[Path], allowed: bool) -> tuple[Path, Path]:
    folder = cache_folder() / name
    images, labels = (folder / f"{_file(split, kind)}.gz" for kind in ("images", "labels"))
    try:
        if not allowed:
            raise UserError("downloading was not allowed")
        for target in (labels, images):
            known = target.name.removesuffix(".gz")
            if not target.is_file():
                fetch(family.mirrors, target, sha256=family.sha256[known], size=_SIZES[known])
    except UserError as error:
        places = ", ".join(str(place) for place in looked if place.name != "raw")
        raise UserError(
            f"{name} was found in none of {places} and could not be downloaded ({error}): put its four IDX files into "
            f"data/{name}, set FASTGAN_DATA to the folder that holds {name}/, or name their folder as {name}:FOLDER"
        ) from error
    return images, labels


def _read(name: str, family: _Family, images_file: Path, labels_file: Path) -> Dataset:
    labels = read_idx(labels_file, ndim=1)
    content = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    for other, known in _FAMILIES.items():  # the two share their file names
        if other != name and digest in known.sha256.values():
            raise UserError(f"{labels_file.parent} holds {other}, not {name}: keep each in a folder of its own name")
    images = read_idx(images_file, ndim=3)
    if len(images) != len(labels):
        counts = f"{len(images)} images and {len(labels)} labels"
        raise UserError(f"{images_file} and {labels_file} hold {counts}: get fresh copies of both")
    if labels.max() >= len(family.classes):
        raise UserError(f"{labels_file} has the label {labels.max()} where 0 ... 9 are known: get a fresh copy")
    return Dataset(
        name=name,
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.from_numpy(labels).to(torch.int64),
        classes=family.classes,
        license=family.license,
        source=f"{family.source}; read from {images_file.parent}",
    )
