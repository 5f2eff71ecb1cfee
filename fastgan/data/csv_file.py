"""`csv:PATH`: a table of mixed columns, kinds and delimiter told by what is in it, as points (see `table`)."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch

from fastgan.data.bounded import available_memory, one_line, opened, readable
from fastgan.data.cells import is_integer, is_missing, number
from fastgan.data.dataset import Dataset
from fastgan.data.gaussians import fit
from fastgan.data.table import Column, Kind, Points, Table
from fastgan.errors import UserError

FEW = 20  # an integer column of at most so many distinct values is one of categories
MOST_CATEGORIES = 1000
MOST_DECIMALS = 4  # that cells are written with; columns of longer ones have what float32 tells
MOST_COLUMNS = 10_000
CHUNK = 4096  # rows that are encoded at a time
_DELIMITERS = (",", ";", "\t")
_LOOKED_AT, _CHARACTERS = 20, 1 << 16  # lines that tell the delimiter, and where to find them
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

Row = list[str]


def load(name: str, path: str | None, *, split: str, allow_download: bool) -> Dataset:
    """Read a table: (n, d) float32 points and the `table` that decodes them."""
    if split != "train":
        raise UserError(f"{name}:{path} has no {split} split: give the file of that split as the path")
    file = Path(path or "").expanduser()
    with opened(file) as stream:
        table, points = read(stream, readable(file))
    return Dataset(f"{name}:{readable(file)}", torch.from_numpy(points), source=f"read from {file}", table=table)


def read(stream: IO[bytes], path: str) -> tuple[Table, Points]:
    """Read a table twice: what its columns are, then the points. ``path`` is what errors call it.

    Raises:
        UserError: Not UTF-8 (or UTF-16 with its mark), no header, no rows, rows of several lengths, a name that is
            there twice, quotes without an end, numbers that are infinite or beyond float32, a column of too many texts.
    """
    encoding = _BOMS.get(stream.read(2), "utf-8-sig")
    stream.seek(0)
    text = io.TextIOWrapper(stream, encoding, newline="")
    try:
        delimiter = _delimiter(text)
        n, table = _inferred(_records(text, delimiter, path), path)
        needed, free = n * table.width * 4, available_memory()
        if free is not None and needed > free:
            sizes = f"{needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB of memory are free"
            raise UserError(f"{path}: {n:,} rows of {table.width:,} numbers take {sizes}: use fewer rows or columns")
        points = np.empty((n, table.width), np.float32)
        random, at = np.random.default_rng(0), 0
        rows = (row for _, row in islice(_records(text, delimiter, path), 1, None))
        while chunk := list(islice(rows, CHUNK)):
            if at + len(chunk) > n:
                raise UserError(f"{path} changes while it is read: wait until it is written")
            points[at : at + len(chunk)] = table.encoded(chunk, random)
            at += len(chunk)
        if at < n:
            raise UserError(f"{path} changes while it is read: wait until it is written")
    except UnicodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({one_line(error)[:80]}): save it as UTF-8") from error
    finally:
        text.detach()
    return table, points


def _records(text: io.TextIOWrapper, delimiter: str, path: str) -> Iterator[tuple[int, Row]]:
    """Yield the line and the cells of each record, stripped, from the start; all have as many as the first."""
    text.seek(0)
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
    width, blank = 0, list[int]()
    try:
        for row in reader:
            if not row and width != 1:
                continue
            if not row:  # a missing cell of the only column, unless nothing follows
                blank.append(reader.line_num)
                continue
            for line in blank:
                yield line, [""]
            blank.clear()
            width = width or len(row)
            if len(row) != width:
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the header has {width}: mend it"
                )
            yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        mend = "shorten that cell, or mend the quotes before it" if "limit" in str(error) else "mend its quotes"
        raise UserError(f"{path}, line {reader.line_num}: {one_line(error)}: {mend}") from error


def _delimiter(text: io.TextIOWrapper) -> str:
    """The one that splits the first records into as many cells each, as many as possible."""
    text.seek(0)
    lines = list(io.StringIO(text.read(_CHARACTERS), newline=""))
    beginning = lines[:-1][:_LOOKED_AT] or lines  # the last may be cut

    def merit(delimiter: str) -> tuple[bool, int]:
        try:
            widths = [len(row) for row in csv.reader(beginning, delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            return False, 0
        return len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0

    return max(_DELIMITERS, key=merit)


def _inferred(records: Iterator[tuple[int, Row]], path: str) -> tuple[int, Table]:
    """The number of rows, and the table whose columns hold them."""
    _, names = next(records, (0, []))
    names = [name or f"column {at}" for at, name in enumerate(names, 1)]
    if not names:
        raise UserError(f"{path} is empty: a header row with names is needed, and rows")
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(names):,} columns: at most {MOST_COLUMNS:,} are read")
    if all(number(name) is not None for name in names):
        raise UserError(f"{path} begins with a row of numbers: a header row with names is needed above it")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice: give each a name of its own")
    seen = [_Seen(name) for name in names]
    rows = 0
    for line, row in records:
        rows += 1
        for column, text in zip(seen, row, strict=True):
            column.see(text, line)
    if not rows:
        raise UserError(f"{path} has a header and no rows: at least one is needed")
    return rows, Table(tuple(column.column(path) for column in seen))


class _Seen:
    """What the cells of a column have been so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: array[float] | None = array("d")  # while every cell is a number
        self.whole = True
        self.decimals: int | None = 0  # while no number has an exponent
        self.missing = False
        self.infinite: tuple[int, str] | None = None  # the first line with one, and its text
        self.texts: set[str] | None = set()  # while they are few
        self.odd: tuple[int, str] | None = None  # the first cell that is no number

    def see(self, text: str, line: int) -> None:
        """Take one more cell."""
        if is_missing(text):
            self.missing = True
            return
        if self.texts is not None:
            self.texts.add(text)
            if len(self.texts) > MOST_CATEGORIES:
                self.texts = None
        if self.values is None:
            return
        value = number(text)
        if value is None:
            self.values, self.odd = None, (line, text)
            return
        self.values.append(value)
        self.whole = self.whole and is_integer(text)
        if self.decimals is not None:
            self.decimals = None if "e" in text.lower() else max(self.decimals, len(text.partition(".")[2]))
        if value == float("inf") and self.infinite is None:
            self.infinite = line, text

    def column(self, path: str) -> Column:
        """Decide what it is: see docs/data.md."""
        if self.values is not None and self.infinite is not None:
            line, text = self.infinite
            raise UserError(
                f"{path}, line {line}: {text[:60]!r} in column {self.name!r} is infinite or beyond float32: mend it"
            )
        if self.values:
            values = np.frombuffer(self.values, np.float64)
            few = np.unique(values) if self.whole else values
            if not self.whole or len(few) > FEW:
                kind: Kind = "integer" if self.whole else "float"
                decimals = None if self.whole or (self.decimals or 0) > MOST_DECIMALS else self.decimals
                return Column(self.name, kind, fit(values), missing=self.missing, decimals=decimals)
            categories = [str(int(value)) for value in few]
        elif self.texts is None:
            line, text = self.odd or (0, "")
            raise UserError(
                f"{path}: column {self.name!r} has more than {MOST_CATEGORIES:,} different texts ({text[:60]!r} in line"
                f" {line}): leave names and codes out, write decimals with a point, group the rest"
            )
        else:
            categories = sorted(self.texts)
        return Column(self.name, "category", categories=(*categories, *([""] if self.missing else [])))
