"""Locks between processes, as files: the operating system takes one off when its holder ends, however it ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PAUSE = 0.2  # seconds between two looks at a lock that is waited for


def lock(path: Path) -> IO[str] | None:
    """Lock ``path``, a file that is made for it and says who holds it, without waiting; None where another holds it.

    A file system that knows no locks lets everyone in. What a killed holder leaves is a file that locks nothing.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _take(file):
            file.close()
            return None
        if _is(file, path):
            break
        file.close()  # its holder has just removed it
    with suppress(OSError):  # it is locked without it, too: on a full disk there may be no room to say by whom
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def unlock(file: IO[str], path: Path) -> None:
    """Give up what ``lock(path)`` returned; the file goes."""
    if os.name == "posix":
        path.unlink(missing_ok=True)  # while it is locked: who opens it now finds that it is no more
    file.close()
    if os.name != "posix":
        path.unlink(missing_ok=True)


def holder(path: Path) -> str:
    """Who holds a lock, for a person to read."""
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def locked(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Context that holds ``lock(path)``. Where another process does, ``waiting`` is told which one, once, and waits."""
    told = False
    while (file := lock(path)) is None:
        if not told:
            waiting(holder(path))
            told = True
        time.sleep(PAUSE)
    try:
        yield
    finally:
        unlock(file, path)


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(file: IO[str]) -> bool:
    """Lock a file without waiting; whether that went well."""
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
