"""One process at a time trains in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgan.errors import UserError
from fastgan.locks import holder, lock, unlock
from fastgan.train.files import plainly

NAME = ".lock"

_held: dict[Path, int] = {}  # folders that this process holds, and how often


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Context in which ``folder``, made where it is not there, is this process's.

    Raises UserError where it is another's, or nobody may write there. The operating system takes the lock off when its
    holder ends, however it ends: what a killed run leaves is a file that locks nothing. It says who the holder is. A
    process may hold a folder several times.
    """
    with plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    key, path = folder.resolve(), folder / NAME
    file = None
    if key not in _held:
        with plainly(folder):
            file = lock(path)
        if file is None:
            raise UserError(f"{folder} is being trained by {holder(path)}: wait for its end, or give another --out")
    _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]
        if file is not None:
            unlock(file, path)
