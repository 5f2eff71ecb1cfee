"""One process at a time trains in a run's folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastgan.errors import UserError
from fastgan.train.files import plainly

NAME = ".lock"

_held: dict[Path, int] = {}  # folders that this process holds, and how often


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Context in which ``folder``, made where it is not there, is this process's. Raises UserError where it is
    another's, or nobody may write there.

    The operating system takes the lock off when its holder ends, however it ends: what a killed run leaves is a file
    that locks nothing. It says who the holder is. A process may hold a folder several times.
    """
    with plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    key = folder.resolve()
    file = None if key in _held else _locked(folder)
    _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]
        if file is not None:
            _release(file, folder / NAME)


def _locked(folder: Path) -> IO[str]:
    path = folder / NAME
    while True:
        with plainly(folder):
            file = path.open("a+", encoding="utf-8")
        if not _take(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(f"{folder} is being trained by {holder}: wait for its end, or give another --out")
        if _is(file, path):
            break
        file.close()  # its holder has just removed it
    with suppress(OSError):  # it is locked without it, too: on a full disk there may be no room to say by whom
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _release(file: IO[str], path: Path) -> None:
    if os.name == "posix":
        path.unlink(missing_ok=True)  # while it is locked: who opens it now finds that it is no more
    file.close()
    if os.name != "posix":
        path.unlink(missing_ok=True)


def _take(file: IO[str]) -> bool:
    """Lock a file without waiting; whether that went well. A file system that knows no locks lets everyone in."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(2**20)  # a byte beyond the text, which others may go on reading
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True
