"""Data sets: whatever a name stands for, as one tensor on the device that a training step gathers its batches from."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Literal

import torch

from fastgan.data.dataset import Dataset, File, Modes, normalise
from fastgan.errors import UserError, unknown

__all__ = ["Dataset", "File", "Modes", "load", "names", "normalise", "splits"]


@dataclass(frozen=True)
class _Source:
    module: str  # its function `load(name, path, *, split, allow_download)` reads the data set
    path: Literal["none", "optional", "needed"]
    example: str = ""
    sized: bool = False  # its `load` takes `image_size` too, and makes images of that size
    splits: tuple[str, ...] = ("train",)


_BOTH = ("train", "test")


_SOURCES = {
    "digits": _Source("fastgan.data.digits", "none"),
    "mnist": _Source("fastgan.data.mnist", "optional", "mnist:FOLDER", splits=_BOTH),
    "fashion-mnist": _Source("fastgan.data.mnist", "optional", "fashion-mnist:FOLDER", splits=_BOTH),
    "npz": _Source("fastgan.data.arrays", "needed", "npz:pictures.npz"),
    "npy": _Source("fastgan.data.arrays", "needed", "npy:pictures.npy"),
    "folder": _Source("fastgan.data.folder", "needed", "folder:PICTURES", sized=True),
    "wds": _Source("fastgan.data.shards", "needed", "wds:shard-{0000..0099}.tar", sized=True),
    "csv": _Source("fastgan.data.csv_file", "needed", "csv:table.csv"),
    "people": _Source("fastgan.data.people", "none", splits=_BOTH),
    "stacked-mnist": _Source("fastgan.data.stacked", "optional", "stacked-mnist:FOLDER", sized=True, splits=_BOTH),
    "stacked-digits": _Source("fastgan.data.stacked", "none", sized=True),
    "ring8": _Source("fastgan.data.mixtures", "none", splits=_BOTH),
    "grid25": _Source("fastgan.data.mixtures", "none", splits=_BOTH),
    "patterns8": _Source("fastgan.data.patterns", "none"),
}


def names() -> list[str]:
    """Names that `load` knows, sorted."""
    return sorted(_SOURCES)


def splits(spec: str) -> tuple[str, ...]:
    """The splits that `load` can read of a data set: ``train``, and ``test`` where it has one. Raises UserError."""
    name = spec.partition(":")[0]
    if name not in _SOURCES:
        raise unknown("data set", name, _SOURCES)
    return _SOURCES[name].splits


def load(
    spec: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    device: str | torch.device = "cpu",
    allow_download: bool = True,
) -> Dataset:
    """Load a data set whole onto ``device`` (onto the host, with a warning, where the device has no room for it).

    Args:
        spec: ``name`` or ``name:PATH``: ``digits``, ``mnist[:FOLDER]``, ``fashion-mnist[:FOLDER]``, ``npz:FILE``,
            ``npy:FILE``, ``folder:FOLDER``, ``wds:SHARDS``, ``csv:FILE``, ``people``, ``ring8``, ``grid25``,
            ``stacked-mnist[:FOLDER]``, ``stacked-digits``, ``patterns8``.
        split: ``train``, or ``test`` where the data set has one.
        image_size: Side of the square images that the model wants; None takes them as they are. ``folder`` and
            ``wds`` resize to it; elsewhere 28x28 digits and other grey images are padded to 32x32 with background, and
            that is all.
        channels: Channels that the model wants; None takes them as they are.
        device: Where the data and the batches live.
        allow_download: Whether ``mnist`` and ``fashion-mnist`` may be downloaded into the cache.

    Raises:
        UserError: Unknown name, missing or damaged file, or images that do not fit the model.
    """
    name, colon, path = spec.partition(":")
    source = _SOURCES.get(name)
    if source is None:
        if spec.endswith((".npz", ".npy")):
            raise UserError(f"unknown data set {spec!r}: to read that file say {spec[-3:]}:{spec}")
        raise unknown("data set", name, _SOURCES)
    if colon and source.path == "none":
        raise UserError(f"the data set {name!r} is built in and takes no path: say {name!r} instead of {spec!r}")
    if not path and (colon or source.path == "needed"):
        raise UserError(f"the data set {spec!r} names no path: say {source.example}")
    if split not in _BOTH:
        raise unknown("split", split, _BOTH)
    module = importlib.import_module(source.module)
    wanted = {"image_size": image_size} if source.sized else {}
    dataset: Dataset = module.load(name, path or None, split=split, allow_download=allow_download, **wanted)
    return replace(dataset, path=path or None).fit(image_size=image_size, channels=channels).to(device)
