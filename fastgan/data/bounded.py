"""Reading files that nobody vouches for: memory is taken as bytes arrive, never because a header asks for it."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from fastgan.errors import UserError

CHUNK = 1 << 20
DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its length

_DAMAGED = (
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    IndexError,
    OverflowError,
    RuntimeError,  # zipfile says so of encrypted entries and of compression that it does not know
)


def one_line(error: BaseException) -> str:
    """The text of an error with its line breaks taken out."""
    return " ".join(str(error).split()) or type(error).__name__


def readable(name: str | Path) -> str:
    """A name as one line of text, whatever is in it."""
    text = str(name)
    return text if text.isprintable() else repr(text)


class Stream(Protocol):
    """What is read from: a file, or an entry or a member that is unpacked on the way."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for reading; what a damaged or missing file makes its reader raise becomes one clear line."""
    try:
        if not path.is_file():
            what = "a folder, not a file" if path.is_dir() else "no ordinary file" if path.exists() else "not there"
            raise UserError(f"{path} is {what}: check the path")
        with path.open("rb") as file:
            yield file
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than this machine has: use fewer or smaller images") from error
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged or of another kind ({one_line(error)}): get a fresh copy") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}): check the path") from error


def read_exactly(stream: Stream, size: int, path: Path) -> bytearray:
    """Read the last ``size`` bytes of ``stream``: one byte fewer or more is an error.

    Reading to the very end also makes gzip and zip compare their checksums.
    """
    free = available_memory()
    if free is not None and size > free:
        raise UserError(f"{path} holds {_megabytes(size)} and {_megabytes(free)} of memory are free: use fewer images")
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(CHUNK, size - len(data)))
        if not chunk:
            raise UserError(f"{path} is cut short: {len(data)} of {size} bytes are there: get a fresh copy")
        data += chunk
    if stream.read(1):
        raise UserError(f"{path} goes on after the {size} bytes that its header promises: get a fresh copy")
    return data


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
