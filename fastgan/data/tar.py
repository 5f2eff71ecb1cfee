"""The members of a tar archive, by their headers alone: nothing is extracted, so that nothing can be written anywhere.

Regular files with names of any length (ustar, GNU, pax). Each step goes forward, so that no header can lead in circles,
and memory is taken for headers of bounded length only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
LONGEST_NAME = 1 << 16  # bytes of a header that holds a name
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"


class TarError(Exception):
    """Where and how an archive is damaged. What came before is whole."""


class Member(NamedTuple):
    """A file within an archive: ``size`` bytes from ``start``."""

    name: str
    start: int
    size: int


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files of an archive in their order. Raises TarError where it cannot go on."""
    end = file.seek(0, os.SEEK_END)
    at, name, size = 0, None, None
    while at < end:
        file.seek(at)
        header = file.read(BLOCK)
        if at == 0 and header.startswith(_COMPRESSED):
            raise TarError("a compressed archive: unpack it to a plain .tar")
        if not any(header):
            return
        kind, length = _checked(header, at), _number(header[124:136], at)
        start = at + BLOCK
        if kind in (_LONG_NAME, _PAX):
            extra = _extra(file, start, length, end)
            found = {b"path": extra.rstrip(b"\0")} if kind == _LONG_NAME else _records(extra, at)
            name = _text(found[b"path"]) if b"path" in found else name
            size = _decimal(found[b"size"], at) if b"size" in found else size
        else:
            length = length if size is None else size
            if kind == _SPARSE:
                raise TarError(f"a sparse file at byte {at}: pack it without --sparse")
            if kind in _WITHOUT_DATA:
                length = 0
            if start + length > end:
                raise TarError(f"cut short: a member of {length:,} bytes at byte {at}")
            if kind in _REGULAR:
                yield Member(_name(header) if name is None else name, start, length)
            name = size = None
        at = start + -(-length // BLOCK) * BLOCK


def _checked(header: bytes, at: int) -> bytes:
    """Return a header's kind, once its checksum is right."""
    if len(header) < BLOCK:
        raise TarError(f"cut short: {len(header)} bytes of a header at byte {at}")
    told = _number(header[148:156], at)
    if told != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise TarError(f"no header, or a damaged one, at byte {at}")
    return header[156:157]


def _number(field: bytes, at: int) -> int:
    """Read an octal number, or one of base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    try:
        return int(text or b"0", 8) if not text.startswith((b"-", b"+")) and b"_" not in text else int("")
    except ValueError as error:
        raise TarError(f"no header, or a damaged one, at byte {at}") from error


def _decimal(text: bytes, at: int) -> int:
    if not (text.isdigit() and len(text) < 20):
        raise TarError(f"a size that is no number at byte {at}")
    return int(text)


def _extra(file: IO[bytes], start: int, length: int, end: int) -> bytes:
    if length > LONGEST_NAME or start + length > end:
        raise TarError(f"a header of {length:,} bytes at byte {start - BLOCK}")
    return file.read(length)


def _records(extra: bytes, at: int) -> dict[bytes, bytes]:
    """Read the records of a pax header: ``length key=value newline``, the length that of the whole record."""
    found = {}
    while extra:
        digits = extra.partition(b" ")[0]
        length = _decimal(digits, at)
        record = extra[len(digits) + 1 : length]
        if not len(digits) + 1 < length <= len(extra) or not record.endswith(b"\n"):
            raise TarError(f"a damaged pax header at byte {at}")
        key, _, value = record[:-1].partition(b"=")
        found[key] = value
        extra = extra[length:]
    return found


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    posix = header[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if posix and prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
