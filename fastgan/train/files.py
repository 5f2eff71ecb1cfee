"""Files that are there whole or not at all; what a disk refuses is said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastgan.errors import UserError

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
SHUT = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def plainly(path: Path, done: str = "written", again: str = "go on with --resume") -> Iterator[None]:
    """Context in which ``path`` cannot be ``done`` for a reason that the system gives: it raises a UserError then.

    ``again``: what is to be done when the reason is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            mend = f"make room on that disk, then {again}"
        else:
            mend = "allow it, or give another --out" if error.errno in SHUT else f"see to it, then {again}"
        raise UserError(f"{path} cannot be {done} ({error.strerror or error}): {mend}") from error


@contextmanager
def replacing(path: Path, again: str = "go on with --resume") -> Iterator[Path]:
    """A name beside ``path`` to write to: it becomes ``path`` when the block ends well, else nothing of it stays.

    It is on the disk before it has the name: a machine that stops finds the former file or the new one. Raises
    UserError where the disk refuses; ``again`` is what it advises when that is mended.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with plainly(path, again=again):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def append(path: Path, text: str, head: str = "") -> None:
    """Add ``text`` to a file, behind ``head`` where it is new: all of it, or nothing where the disk refuses.

    Raises UserError then.
    """
    with plainly(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        left = memoryview((text if before else head + text).encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Wait until what a file holds is on the disk; a file that is not there needs no waiting."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        os.fsync(file.fileno())
