"""Pictures packed once into a memory map in the cache: uint8 (n, C, S, S), which `numpy.load(mmap_mode="r")` reads.

That is how a data set is held and how batches are gathered, so that nothing is ever copied as a whole.

    CACHE/packed/KIND-<digest of where the pictures are>/   a folder for each source, and a lock beside it
        <digest of what is there>-<image_size>/             a pack: it appears whole or not at all
            images.npy   labels.npy   pack.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgan.data.bounded import one_line, readable
from fastgan.data.dataset import Dataset, File
from fastgan.data.intake import MOST_CLASSES
from fastgan.data.packing import Item, Skipped, pack_into
from fastgan.data.places import cache_folder
from fastgan.disk import sync_folder, write
from fastgan.errors import UserError
from fastgan.locks import locked

FORMAT = 1  # of packs: those of another one are made anew
SHOWN = 10  # names in a list of what was skipped
_WRITING = ".writing-"


Listing = tuple[list[Item], list[Skipped]]


@dataclass(frozen=True)
class Found:
    """What a source holds: a digest that changes when any of it does, and what lists its pictures and what is none."""

    digest: str
    listing: Callable[[], Listing]


def digest(parts: Iterable[object]) -> str:
    """Return a short name for what is there."""
    state = hashlib.sha256()
    for part in parts:
        state.update(repr(part).encode("utf-8", "backslashreplace") + b"\n")
    return state.hexdigest()[:24]


def load_packed(kind: str, where: str, found: Found, image_size: int | None) -> Dataset:
    """Return the data set of a source's pack, which is made first where there is none of its present content.

    Several processes pack once: the others wait. Packs of what the source held before go. Labels are there where every
    picture has one.
    """
    name = f"{kind}:{readable(where)}"
    source = cache_folder() / "packed" / f"{kind}-{digest([where])}"
    pack = source / f"{found.digest}-{image_size or 'asis'}"
    dataset = _opened(pack, name)
    if dataset is not None:
        return dataset
    try:
        source.mkdir(parents=True, exist_ok=True)
        lock = source.with_name(f"{source.name}.lock")
        with locked(lock, lambda who: _say(f"{name} is being packed by {who}: waiting")):
            if _opened(pack, name, aloud=False) is None:
                _clear(source, found.digest, name)
                _make(pack, name, found, image_size)
    except OSError as error:
        raise UserError(
            f"the cache {source} cannot be written ({error.strerror or one_line(error)}): set FASTGAN_CACHE"
        ) from error
    dataset = _opened(pack, name)
    if dataset is None:
        raise UserError(f"the pack {pack} cannot be read though it has just been written: set FASTGAN_CACHE")
    return dataset


def _make(pack: Path, name: str, found: Found, image_size: int | None) -> None:
    items, skipped = found.listing()
    writing = pack.with_name(f"{_WRITING}{uuid.uuid4().hex}")
    writing.mkdir()
    try:
        done = pack_into(writing / "images.npy", items, name, image_size)
        skipped = [*skipped, *done.skipped]
        if not done.kept:
            raise UserError(f"{name}: not one of {len(items):,} pictures can be read: {_listed(skipped)}")
        classes = _write_labels(writing / "labels.npy", [items[at].label for at in done.kept], name)
        content = {
            "format": FORMAT,
            "source": name,
            "shape": done.shape,
            "classes": classes,
            "skipped": len(skipped),
            "first_skipped": skipped[:SHOWN],
        }
        write(writing / "pack.json", json.dumps(content, indent=1).encode("ascii"))
        sync_folder(writing)
        try:
            os.replace(writing, pack)
        except OSError:  # made meanwhile by another process, on a file system without locks; or damaged
            shutil.rmtree(pack, ignore_errors=True)
            os.replace(writing, pack)
        sync_folder(pack.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _write_labels(path: Path, labels: list[str | int | None], name: str) -> list[str]:
    """Write labels as int64 where each picture has one, and return the names of the classes."""
    absent = sum(label is None for label in labels)
    if absent:
        if absent < len(labels):
            _say(f"{name}: {absent:,} of {len(labels):,} pictures have no label: none is used")
        return []
    if all(isinstance(label, int) for label in labels):
        numbers = np.array(labels, np.int64)
        classes = [str(number) for number in range(int(numbers.max()) + 1)]
    else:
        classes = sorted({str(label) for label in labels})
        if len(classes) > MOST_CLASSES:
            raise UserError(
                f"{name}: {len(classes):,} classes are more than {MOST_CLASSES:,}: use fewer folders or names"
            )
        place = {label: at for at, label in enumerate(classes)}
        numbers = np.array([place[str(label)] for label in labels], np.int64)
    with path.open("wb") as file:
        np.lib.format.write_array(file, numbers, version=(1, 0), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return classes


def _opened(pack: Path, name: str, aloud: bool = True) -> Dataset | None:
    """The data set of a pack; None where there is none, or a damaged one."""
    try:
        content: dict[str, Any] = json.loads((pack / "pack.json").read_text(encoding="ascii"))
        images = np.load(pack / "images.npy", mmap_mode="r", allow_pickle=False)
        classes = tuple(str(word) for word in content["classes"])
        labels = np.load(pack / "labels.npy", allow_pickle=False) if classes else None
        skipped = [Skipped(*map(str, entry)) for entry in content["first_skipped"]]
        whole = (
            content["format"] == FORMAT
            and images.dtype == np.uint8
            and images.ndim == 4
            and list(images.shape) == content["shape"]
            and (labels is None or (labels.dtype == np.int64 and labels.shape == images.shape[:1]))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    if aloud and content["skipped"]:
        _say(f"{name}: {content['skipped']:,} skipped: {_listed(skipped, content['skipped'])}")
    return Dataset(
        name=name,
        images=shared(images),
        labels=None if labels is None else torch.from_numpy(labels),
        classes=classes,
        source=f"packed into {pack}",
        file=File(pack / "images.npy", int(images.offset)),
    )


def shared(images: Any) -> torch.Tensor:
    """The map as a tensor; nothing here writes to a data set, and the system would not let it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def _clear(source: Path, keep: str, name: str) -> None:
    """Remove packs of what the source held before, and what a killed process left. The lock is ours."""
    old = [path for path in source.iterdir() if path.is_dir() and not path.name.startswith(f"{keep}-")]
    if any(not path.name.startswith(_WRITING) for path in old):
        _say(f"{name} has changed since it was packed: packing it anew")
    for path in old:
        shutil.rmtree(path, ignore_errors=True)  # on Windows one that is in use stays until the next time


def _listed(skipped: Sequence[Skipped], count: int | None = None) -> str:
    more = (count or len(skipped)) - SHOWN
    first = ", ".join(f"{name!r} ({why})" for name, why in skipped[:SHOWN])
    return first + (f", and {more:,} more" if more > 0 else "")


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=2)
