"""`folder:PATH`: pictures of any kind in a folder and the folders within; those of the first level name classes."""

from __future__ import annotations

import os
from pathlib import Path

from fastgan.data.bounded import readable
from fastgan.data.dataset import Dataset
from fastgan.data.pack import Found, digest, load_packed
from fastgan.data.packing import Item, Skipped
from fastgan.data.pixels import check_size, endings
from fastgan.errors import UserError

READABLE = 0o444  # a file that was skipped because it could not be read is tried again once it can be
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


def load(name: str, path: str | None, *, split: str, allow_download: bool, image_size: int | None) -> Dataset:
    """Pack the pictures below ``path``, once, and read the pack: (n, 1 or 3, S, S) uint8, labels by subfolder."""
    if split != "train":
        raise UserError(f"{name}:{path} has no {split} split: give the folder of that split as the path")
    check_size(image_size)
    folder = Path(path or "").expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{readable(folder)} is {'no folder' if folder.exists() else 'not there'}: check the path")
    return load_packed(name, str(folder), _found(str(folder)), image_size)


def _found(folder: str) -> Found:
    """Find the pictures, in the order of their relative paths by code point, whatever the system's own order is."""
    tree = _Tree()
    tree.walk(folder)
    if not tree.files:
        other = f"; its {tree.others:,} other files are of no kind that Pillow reads" if tree.others else ""
        failed = f"; {tree.skipped[0].name!r}: {tree.skipped[0].why}" if tree.skipped else ""
        raise UserError(f"no pictures are in {readable(folder)}{other}{failed}: check the path")
    found = sorted(tree.files)
    classes = {name.partition("/")[0] for name, *_ in found if "/" in name}
    labelled = len(classes) > 1 and all("/" in name for name, *_ in found)
    items = [Item(name, os.path.join(folder, name), name.partition("/")[0] if labelled else None) for name, *_ in found]
    return Found(digest(found), lambda: (items, sorted(tree.skipped)))


class _Tree:
    """What is found below a folder. Links are followed, but into each folder once, so that loops end."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int, int, int]] = []  # relative path, size, time of change, who may read it
        self.skipped: list[Skipped] = []
        self.others = 0
        self._seen: set[tuple[int, int]] = set()
        self._endings = endings()

    def walk(self, top: str) -> None:
        """Collect what is in a folder and below it, however deep."""
        waiting = [""]
        while waiting:
            relative = waiting.pop()
            try:
                waiting += reversed(self._folder(os.path.join(top, relative), relative))
            except OSError as error:
                self.skipped.append(Skipped(relative or ".", error.strerror or type(error).__name__))

    def _folder(self, path: str, relative: str) -> list[str]:
        """Collect the files of one folder and return the folders in it, in order."""
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in self._seen and status.st_ino:
            return []
        self._seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            here = sorted((entry for entry in entries if not _litter(entry.name)), key=lambda entry: entry.name)
        inside = []
        for entry in here:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                inside.append(name)
            elif os.path.splitext(entry.name)[1].lower() not in self._endings:
                self.others += 1
            else:
                self._file(entry, name)
        return inside

    def _file(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            status = entry.stat()
        except OSError as error:  # it has just gone, or a link leads nowhere
            self.skipped.append(Skipped(name, error.strerror or type(error).__name__))
            return
        if entry.is_file():
            self.files.append((name, status.st_size, status.st_mtime_ns, status.st_mode & READABLE))
        else:
            self.skipped.append(Skipped(name, "no regular file"))


def _litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER
