"""Fetching a gzipped file from the first mirror that has it whole: it appears in its place checked, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from fastgan.data.bounded import CHUNK, one_line
from fastgan.errors import UserError, require

TIMEOUT = 20.0  # seconds without a byte
_GZIP_OVERHEAD = 1 << 16  # bytes by which a gzipped file may be longer than what it holds


def fetch(mirrors: Iterable[str], target: Path, *, sha256: str, size: int) -> None:
    """Download ``target.name`` from the first of ``mirrors`` (addresses that end in /) that gives the right content.

    Args:
        mirrors: Addresses of the folders that hold the file.
        target: Where it goes. It appears there whole and checked, or not at all.
        sha256: Digest of what the file unpacks to (mirrors differ in how they compress).
        size: Length of what it unpacks to; no more than about this is ever fetched.

    Raises:
        UserError: The folder cannot be written, or no mirror gave the file; its text is the reason of each.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache {target.parent} cannot be made ({error.strerror}): set FASTGAN_CACHE") from error
    reasons = []
    for mirror in mirrors:
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            _stream(mirror + target.name, part, limit=size + _GZIP_OVERHEAD)
            _check(part, sha256, size)
            os.replace(part, target)
            return
        except (OSError, EOFError, ValueError, zlib.error, http.client.HTTPException) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
        finally:
            part.unlink(missing_ok=True)
    raise UserError("; ".join(reasons))


def _reason(error: BaseException) -> str:
    inner = error.reason if type(error) is urllib.error.URLError else error
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else one_line(Exception(inner))


def _stream(url: str, part: Path, *, limit: int) -> None:
    tqdm = require("tqdm.auto", why="a download's progress bar").tqdm
    request = urllib.request.Request(url, headers={"User-Agent": "fastgan"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, part.open("xb") as file:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], leave=False) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > limit:
                    raise ValueError(f"more than the {limit} bytes that the file can take")


def _check(part: Path, sha256: str, size: int) -> None:
    digest, seen = hashlib.sha256(), 0
    with gzip.open(part) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            seen += len(chunk)
            if seen > size:
                break
    if seen != size or digest.hexdigest() != sha256:
        raise ValueError("the checksum is wrong")
