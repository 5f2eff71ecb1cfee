"""`wds:PATTERN`: pictures in WebDataset shards, tar archives of KEY.jpg, KEY.png, ... with KEY.cls or KEY.json."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from fastgan.data.dataset import Dataset
from fastgan.data.folder import READABLE
from fastgan.data.intake import MOST_CLASSES
from fastgan.data.pack import Found, Listing, digest, load_packed
from fastgan.data.packing import Item, Skipped
from fastgan.data.pixels import check_size, endings
from fastgan.data.tar import Member, TarError, members
from fastgan.errors import UserError

MOST_SHARDS = 100_000
LONGEST_LABEL = 1 << 20  # bytes of a .cls or .json member
LONGEST_CLASS = 200  # characters of a class's name
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LABELS = (".cls", ".json")


def load(name: str, path: str | None, *, split: str, allow_download: bool, image_size: int | None) -> Dataset:
    """Pack the pictures of the shards, once, and read the pack: (n, 1 or 3, S, S) uint8, labels where all have one.

    ``path`` may hold braces, ``shard-{000000..000099}.tar`` or ``{train,val}.tar``, and ``*``, ``?`` and ``[...]``.
    """
    if split != "train":
        raise UserError(f"{name}:{path} has no {split} split: give the shards of that split as the path")
    check_size(image_size)
    pattern = os.path.expanduser(path or "")
    shards = _found(pattern)
    state = []
    for shard in shards:
        try:
            status = os.stat(shard)
        except OSError as error:
            raise UserError(f"{shard} cannot be read ({error.strerror}): check the path") from error
        state.append((shard, status.st_size, status.st_mtime_ns, status.st_mode & READABLE))
    return load_packed(name, os.path.abspath(pattern), Found(digest(state), lambda: _listed(shards)), image_size)


def expanded(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for, in order: as a shell's, with ranges of whole numbers."""
    waiting, done = [pattern], []
    while waiting:
        text = waiting.pop()
        braces = _BRACES.search(text)
        if braces is None:
            done.append(text)
            continue
        before = text[: braces.start()]
        if before.count("{") > before.count("}"):
            raise UserError(f"{pattern}: braces within braces are not read: write one after the other")
        words = _words(braces[1], pattern)
        waiting += [before + word + text[braces.end() :] for word in reversed(words)]
        if len(waiting) + len(done) > MOST_SHARDS:
            raise UserError(f"{pattern} stands for more than {MOST_SHARDS:,} shards: name fewer")
    return done


def _words(inside: str, pattern: str) -> list[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        if "," not in inside:
            raise UserError(f"{pattern}: {{{inside}}} is no range and no list: write {{0000..0099}} or {{train,val}}")
        return inside.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if last < first or last - first >= MOST_SHARDS:
        raise UserError(f"{pattern}: {{{inside}}} has to go up, by fewer than {MOST_SHARDS:,}")
    width = len(bounds[1]) if bounds[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _found(pattern: str) -> list[str]:
    """The shards of a pattern, which are all there."""
    if os.path.isfile(pattern):
        return [pattern]
    shards = []
    for word in expanded(pattern):
        shards += sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) else [word]
    if not shards:
        raise UserError(f"no shard is called {pattern}: check the path")
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise UserError(f"{len(missing):,} of {len(shards):,} shards are missing, {missing[0]} for one: check the path")
    return shards


@dataclass
class Sample:
    """What shares a key."""

    picture: Member | None = None
    label: str | int | None = None


@dataclass
class Contents:
    """What one shard holds."""

    samples: dict[str, Sample] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def contents(file: IO[bytes]) -> Contents:
    """Read the headers and the labels of a shard. What is damaged or there twice is listed."""
    found, pictures = Contents(), endings()
    try:
        for member in members(file):
            folder, slash, base = member.name.rpartition("/")
            key, dot, ending = base.partition(".")
            ending = f".{ending.lower()}"
            if not key or not dot or ending not in (*_LABELS, *pictures):
                continue
            sample = found.samples.setdefault(f"{folder}{slash}{key}", Sample())
            if ending in _LABELS:
                _take_label(sample, member, ending, file, found)
            elif sample.picture is None:
                sample.picture = member
            else:
                found.skipped.append(Skipped(member.name, "its key has a picture already"))
    except TarError as error:
        found.skipped.append(Skipped("the rest", str(error)))
    return found


def _take_label(sample: Sample, member: Member, ending: str, file: IO[bytes], found: Contents) -> None:
    try:
        if member.size > LONGEST_LABEL:
            raise ValueError(f"{member.size:,} bytes are too many for a label")
        file.seek(member.start)
        label = label_of(file.read(member.size), ending)
        if sample.label not in (None, label):
            raise ValueError(f"its key has the label {sample.label!r} already")
    except (ValueError, RecursionError) as error:
        found.skipped.append(Skipped(member.name, str(error)[:100].replace("\n", " ")))
    else:
        sample.label = label


def label_of(content: bytes, ending: str) -> str | int | None:
    """Return what a .cls or .json member says: the number or the name of a class. Raises ValueError for neither."""
    text = content.decode("utf-8").strip()
    label: object = text
    if ending == ".json":
        body = json.loads(text)
        label = body.get("label") if isinstance(body, dict) else None
        if label is None:
            return None
    elif text.isascii() and text.isdigit():
        label = int(text)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MOST_CLASSES:
        return label
    if isinstance(label, str) and 0 < len(label) <= LONGEST_CLASS:
        return label
    raise ValueError(f"a label is a number from 0 to {MOST_CLASSES - 1} or a name")


def _listed(shards: list[str]) -> Listing:
    items: list[Item] = []
    skipped: list[Skipped] = []
    for shard, found in _each(shards):
        base = os.path.basename(shard)
        skipped += [Skipped(f"{base}: {name}", why) for name, why in found.skipped]
        for sample in found.samples.values():
            if sample.picture is not None:
                name, start, size = sample.picture
                items.append(Item(f"{base}: {name}", shard, sample.label, start, size))
    if not items:
        why = f"; {skipped[0].name!r}: {skipped[0].why}" if skipped else ""
        others = " and the others" if len(shards) > 1 else ""
        raise UserError(f"no pictures (KEY.jpg, KEY.png, ...) are in {shards[0]}{others}{why}: check the path")
    return items, skipped


def _each(shards: list[str]) -> Iterator[tuple[str, Contents]]:
    for shard in shards:
        try:
            with open(shard, "rb") as file:
                yield shard, contents(file)
        except OSError as error:
            yield shard, Contents(skipped=[Skipped("all", error.strerror or type(error).__name__)])
